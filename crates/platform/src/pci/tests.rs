//! The root as a guest sees it: through the buses.

use super::super::{PciError, Window, Windows};
use super::*;
use crate::sync::lock;
use device::pci::{Bar, BarKind, ConfigSpace, Identity, PciFunction, reg};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// A function with an I/O, a 32-bit and a 64-bit register; reads of them give register and offset.
struct Probe {
    config: Mutex<ConfigSpace>,
    written: Mutex<Vec<(usize, u64, Vec<u8>)>>,
}

impl Probe {
    fn new(memory_size: u64) -> Arc<Probe> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x10ff,
            subsystem_vendor: 0,
            subsystem: 0,
            revision: 1,
            class: 0xff0000,
        });
        config.add_bar(0, BarKind::Io, 0x40);
        config.add_bar(1, BarKind::Memory32, memory_size);
        config.add_bar(2, BarKind::Memory64 { prefetchable: true }, memory_size);
        config.set_u8(reg::INTERRUPT_PIN, 1);
        Arc::new(Probe { config: Mutex::new(config), written: Mutex::default() })
    }
}

impl PciFunction for Probe {
    fn config_read(&self, register: u16) -> u32 {
        lock(&self.config).read(register)
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && offset as usize % 4 + data.len() <= 4);
        lock(&self.config).write(offset, data);
    }
    fn bars(&self) -> Vec<Bar> {
        lock(&self.config).bars()
    }
    fn bar_read(&self, index: usize, offset: u64, data: &mut [u8]) {
        data.fill((index as u8) << 4 | offset as u8 & 0xf);
    }
    fn bar_write(&self, index: usize, offset: u64, data: &[u8]) {
        lock(&self.written).push((index, offset, data.to_vec()));
    }
}

struct Rig {
    root: Arc<PciRoot>,
    pio: Bus,
    mmio: Bus,
    resets: Arc<AtomicU32>,
}

fn rig() -> Rig {
    let root = PciRoot::new(Windows::above_ram(5 << 30, 1 << 30));
    let (pio, mmio, resets) = (Bus::new(), Bus::new(), Arc::new(AtomicU32::new(0)));
    let count = resets.clone();
    let reset = ResetControl::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    root.attach(&pio, &mmio, Arc::new(reset)).unwrap();
    Rig { root, pio, mmio, resets }
}

impl Rig {
    fn ports_read(&self, device: u32, register: u32) -> u32 {
        self.pio.write(0xcf8, &(0x8000_0000 | device << 11 | register & 0xfc).to_le_bytes());
        let mut data = [0; 4];
        self.pio.read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    fn ecam(&self, device: u64, offset: u64) -> u64 {
        ECAM_BASE + (device << 15) + offset
    }

    fn memory(&self, address: u64) -> u8 {
        let mut data = [0];
        self.mmio.read(address, &mut data);
        data[0]
    }
}

#[test]
fn linux_finds_mechanism_1_and_the_host_bridge() {
    let rig = rig();
    rig.pio.write(0xcfb, &[1]);
    rig.pio.write(0xcf8, &0x8000_0000u32.to_le_bytes());
    let mut data = [0; 4];
    rig.pio.read(0xcf8, &mut data);
    assert_eq!(data, 0x8000_0000u32.to_le_bytes());
    assert_eq!(rig.ports_read(0, 0), 0x29c0_8086);
    assert_eq!(rig.ports_read(0, 8), 0x0600_0000);
    assert_eq!(rig.ports_read(1, 0), u32::MAX, "nobody there");
    let mut half = [0; 2];
    rig.ports_read(0, 0);
    rig.pio.read(0xcfe, &mut half);
    assert_eq!(half, [0xc0, 0x29]);
    rig.pio.write(0xcf8, &[0; 4]);
    rig.pio.read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4], "not enabled");
    assert_eq!(rig.resets.load(Ordering::Relaxed), 0);
    rig.pio.write(0xcf9, &[6]);
    assert_eq!(rig.resets.load(Ordering::Relaxed), 1);
}

#[test]
fn both_mechanisms_show_the_same_space_and_ecam_all_of_it() {
    let rig = rig();
    rig.root.add(Bdf::on_bus_0(3, 0), Probe::new(0x1000)).unwrap();
    for register in (0..0x100).step_by(4) {
        let mut data = [0; 4];
        assert!(rig.mmio.read(rig.ecam(3, register), &mut data));
        assert_eq!(u32::from_le_bytes(data), rig.ports_read(3, register as u32), "{register:#x}");
    }
    let mut wide = [0; 8];
    rig.mmio.read(rig.ecam(3, 0), &mut wide);
    assert_eq!(wide[..4], 0x10ff_1af4u32.to_le_bytes());
    let mut odd = [0; 2];
    rig.mmio.read(rig.ecam(3, 1), &mut odd);
    assert_eq!(odd, [0x1a, 0xff]);
    rig.mmio.read(rig.ecam(3, 0xffc), &mut wide);
    assert_eq!(wide, [0xff; 8], "crosses the end");
    rig.mmio.read(rig.ecam(3, 0xf00), &mut wide);
    assert_eq!(wide, [0; 8]);
    rig.mmio.read(ECAM_BASE + (1 << 20), &mut wide);
    assert_eq!(wide, [0xff; 8], "bus 1 is empty");
}

#[test]
fn firmware_moves_configuration_space() {
    let rig = rig();
    assert_eq!(rig.root.ecam_base(), Some(ECAM_BASE));
    // The way of UEFI firmware: by ports, upper half first.
    rig.pio.write(0xcf8, &0x8000_0064u32.to_le_bytes());
    rig.pio.write(0xcfc, &0u32.to_le_bytes());
    rig.pio.write(0xcf8, &0x8000_0060u32.to_le_bytes());
    rig.pio.write(0xcfc, &0xe000_0001u32.to_le_bytes());
    assert_eq!(rig.root.ecam_base(), Some(0xe000_0000));
    let mut data = [0; 4];
    rig.mmio.read(0xe000_0000, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x29c0_8086);
    rig.mmio.read(ECAM_BASE, &mut data);
    assert_eq!(data, [0xff; 4], "no longer there");
    // Bits that do not exist stay zero; what is not decoded is not there; a saved bridge goes on.
    rig.mmio.write(0xe000_0060, &0xdfff_fffeu32.to_le_bytes());
    assert_eq!((rig.ports_read(0, 0x60), rig.root.ecam_base()), (0xd000_0000, None));
    rig.pio.write(0xcfc, &0xd000_0001u32.to_le_bytes());
    let saved = rig.root.save();
    rig.root.reset();
    assert_eq!(rig.root.ecam_base(), Some(ECAM_BASE));
    rig.root.restore(saved).unwrap();
    assert_eq!(rig.root.ecam_base(), Some(0xd000_0000));
}

#[test]
fn several_functions_of_a_device_are_announced_by_the_first() {
    let rig = rig();
    for function in [0, 5] {
        rig.root.add(Bdf::on_bus_0(4, function), Probe::new(0x1000)).unwrap();
    }
    rig.root.add(Bdf::on_bus_0(5, 0), Probe::new(0x1000)).unwrap();
    assert_eq!(rig.ports_read(4, 0x0c), 0x80_0000);
    assert_eq!(rig.ports_read(5, 0x0c), 0);
}

#[test]
fn places_are_checked() {
    let rig = rig();
    let refused =
        |bus, device, function| rig.root.add(Bdf { bus, device, function }, Probe::new(0x1000)).unwrap_err();
    assert_eq!(refused(0, 0, 0), PciError::Taken(Bdf::on_bus_0(0, 0)));
    assert!(matches!(refused(1, 0, 0), PciError::NoSuchPlace(_)));
    assert!(matches!(refused(0, 32, 0), PciError::NoSuchPlace(_)));
    for device in 1..32 {
        assert_eq!(rig.root.free_device(), Ok(device));
        rig.root.add(Bdf::on_bus_0(device, 0), Probe::new(0x1000)).unwrap();
    }
    assert_eq!(rig.root.free_device(), Err(PciError::BusFull));
    assert!(rig.root.remove(Bdf::on_bus_0(9, 0)).is_some());
    assert_eq!(rig.root.free_device(), Ok(9));
}

#[test]
fn assigned_registers_are_aligned_apart_and_answer() {
    let rig = rig();
    let sizes = [0x1000, 0x10_0000, 0x100, 0x4000];
    for (device, size) in (1..).zip(sizes) {
        rig.root.add(Bdf::on_bus_0(device, 0), Probe::new(size)).unwrap();
    }
    rig.root.assign_bars().unwrap();
    let windows = rig.root.windows();
    assert_eq!(windows.mmio64, Window { start: 5 << 30, len: 1 << 30 });
    let mut places = Vec::new();
    for (bdf, function) in rig.root.functions() {
        for bar in function.bars() {
            assert!(bar.enabled && bar.base % bar.size == 0);
            let (window, bus) = match bar.kind {
                BarKind::Io => (windows.io, &rig.pio),
                BarKind::Memory32 => (windows.mmio32, &rig.mmio),
                BarKind::Memory64 { .. } => (windows.mmio64, &rig.mmio),
            };
            assert!(bar.base >= window.start && bar.base + bar.size <= window.end(), "{bdf} {bar:?}");
            let mut data = [0; 2];
            bus.read(bar.base + bar.size - 2, &mut data);
            assert_eq!(data, [(bar.index as u8) << 4 | 0xe; 2]);
            places.push((bar.base, bar.size));
        }
        if bdf.device != 0 {
            assert_eq!(rig.ports_read(bdf.device.into(), 0x3c) & 0xff, 16 + bdf.device as u32 % 8);
        }
    }
    assert_eq!(places.len(), 12);
    places.sort();
    assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
}

#[test]
fn a_window_that_is_too_small_is_an_error() {
    let windows = Windows { mmio32: Window { start: 0xc000_0000, len: 0x1000 }, ..Windows::above_ram(0, 0) };
    let root = PciRoot::new(windows);
    let probe = Probe::new(0x1000);
    root.add(Bdf::on_bus_0(1, 0), probe).unwrap();
    let error = root.assign_bars().unwrap_err();
    assert_eq!(error, PciError::NoRoom { bdf: Bdf::on_bus_0(1, 0), index: 2, size: 0x1000 });
}

#[test]
fn a_guest_moves_and_switches_registers() {
    let rig = rig();
    let probe = Probe::new(0x1000);
    rig.root.add(Bdf::on_bus_0(1, 0), probe.clone()).unwrap();
    rig.root.assign_bars().unwrap();
    let old = probe.bars()[1].base;
    assert_eq!(rig.memory(old + 3), 0x13);
    let new = 0xd000_0000u32;
    rig.mmio.write(rig.ecam(1, 0x14), &new.to_le_bytes());
    assert_eq!((rig.memory(old + 3), rig.memory(new as u64 + 3)), (0xff, 0x13));
    rig.mmio.write(new as u64 + 8, &[1, 2, 3, 4]);
    assert_eq!(*lock(&probe.written), [(1, 8, vec![1, 2, 3, 4])]);
    rig.mmio.write(new as u64 + 0xfff, &[1, 2]);
    assert_eq!(lock(&probe.written).len(), 1, "crosses the register's end");
    rig.mmio.write(rig.ecam(1, 4), &[1, 0]);
    assert_eq!(rig.memory(new as u64 + 3), 0xff, "memory decoding is off");
    let mut port = [0];
    rig.pio.read(probe.bars()[0].base, &mut port);
    assert_eq!(port, [0], "I/O decoding is on");
    // All registers at once, in one wide write that is cut into doublewords.
    rig.mmio.write(rig.ecam(1, 4), &[2, 0]);
    rig.mmio.write(rig.ecam(1, 0x18), &(0x1_4000_1000u64).to_le_bytes());
    assert_eq!(rig.memory(0x1_4000_1001), 0x21);
}

#[test]
fn overlapping_registers_belong_to_the_first_function() {
    let rig = rig();
    let probes = [Probe::new(0x1000), Probe::new(0x1000)];
    for (device, probe) in (1..).zip(&probes) {
        rig.root.add(Bdf::on_bus_0(device, 0), probe.clone()).unwrap();
    }
    rig.root.assign_bars().unwrap();
    let first = probes[0].bars()[1].base;
    rig.mmio.write(rig.ecam(2, 0x14), &(first as u32).to_le_bytes());
    rig.mmio.write(first, &[9]);
    assert_eq!((lock(&probes[0].written).len(), lock(&probes[1].written).len()), (1, 0));
    rig.mmio.write(rig.ecam(1, 4), &[0, 0]);
    rig.mmio.write(first, &[9]);
    assert_eq!(lock(&probes[1].written).len(), 1);
}

#[test]
fn save_and_restore() {
    let rig = rig();
    rig.ports_read(7, 0x10);
    rig.mmio.write(rig.ecam(0, 0x3c), &[5]);
    let saved = rig.root.save();
    rig.root.reset();
    assert_eq!(rig.ports_read(0, 0x3c) & 0xff, 0);
    rig.root.restore(saved.clone()).unwrap();
    let mut data = [0; 4];
    rig.pio.read(0xcf8, &mut data);
    assert_eq!(data, 0x8000_3810u32.to_le_bytes());
    assert_eq!(rig.ports_read(0, 0x3c) & 0xff, 5);
    let mut json = serde_json::to_value(&saved).unwrap();
    json["config_address"] = 1.into();
    assert!(rig.root.restore(serde_json::from_value(json).unwrap()).is_err());
}
