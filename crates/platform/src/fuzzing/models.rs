//! Targets that drive one register model.

use super::script::Script;
use crate::acpi_pm::AcpiPmModel;
use crate::i8042::{I8042Model, Key, KeyboardModel, Stroke};
use crate::ioapic::IoApicModel;
use crate::pic::PicPair;
use crate::pit::PitModel;
use crate::rtc::Rtc;
use crate::serial::Uart;
use crate::vga::VgaModel;
use crate::{acpi_pm as pm, i8042 as kbd};
use device::state::SaveRestore;
use memory::VideoMemory;
use std::sync::LazyLock;

/// A copy by way of the saved state, which the device must accept.
fn copied<T: SaveRestore>(device: &T, mut fresh: T) -> T {
    fresh.restore(device.save()).expect("a reachable state can be restored");
    fresh
}

/// The 16550A.
pub fn serial(data: &[u8]) {
    let mut script = Script(data);
    let mut uart = Uart::new();
    let mut step = || {
        let operation = script.byte()?;
        let register = operation & 7;
        match operation >> 6 {
            0 => assert!(uart.receive(&script.quad()?.to_le_bytes()[..register as usize]) <= 7),
            1 => drop(uart.write(register, script.byte()?)),
            _ => {
                let mut copy = copied(&uart, Uart::new());
                assert_eq!(copy.interrupt(), uart.interrupt());
                assert_eq!(copy.read(register), uart.read(register));
            }
        }
        assert!(uart.room() <= 16);
        Some(())
    };
    while step().is_some() {}
}

/// The real-time clock.
pub fn rtc(data: &[u8]) {
    let mut script = Script(data);
    let mut now = 1_700_000_000_000_000_000;
    let mut rtc = Rtc::new(now);
    let mut step = || {
        match script.byte()? & 7 {
            0 => now = now.saturating_add(script.duration()?),
            1 => now = now.saturating_sub(script.duration()?),
            2 => rtc.write_index(script.byte()?),
            3 | 4 => {
                // Mostly the clock's registers.
                rtc.write_index(script.byte()? % 16);
                rtc.write_data(script.byte()?, now);
            }
            5 => rtc.write_data(script.byte()?, now),
            6 => rtc.reset(),
            _ => {
                rtc.advance(now);
                let mut copy = copied(&rtc, Rtc::new(0));
                copy.resume_at(now);
                assert_eq!(copy.read_data(now), rtc.clone().read_data(now));
                rtc.read_data(now);
            }
        }
        rtc.advance(now);
        if let Some(wait) = rtc.next_interrupt(now).filter(|wait| now.checked_add(*wait).is_some()) {
            let mut later = rtc.clone();
            assert!(wait > 0);
            later.advance(now + wait - 1);
            assert_eq!(later.interrupt(), rtc.interrupt(), "before the interrupt that was announced");
            later.advance(now + wait);
            assert!(later.interrupt(), "at the time of the interrupt that was announced");
        }
        Some(())
    };
    while step().is_some() {}
}

/// The 8259A pair.
pub fn pic(data: &[u8]) {
    const PORTS: [u16; 8] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x20, 0xa0];
    let mut script = Script(data);
    let mut pic = PicPair::new();
    let mut step = || {
        let operation = script.byte()?;
        let port = PORTS[operation as usize & 7];
        match operation >> 5 {
            0 | 1 => pic.write(port, script.byte()?),
            2 => {
                assert_eq!(copied(&pic, PicPair::new()).read(port), pic.read(port));
            }
            3 => pic.set_irq((operation & 0x1f).into(), true),
            4 => pic.set_irq((operation & 0x1f).into(), false),
            5 => {
                let mut copy = copied(&pic, PicPair::new());
                assert_eq!(copy.interrupt(), pic.interrupt());
                assert_eq!(copy.acknowledge(), pic.acknowledge());
            }
            // What a system's interrupt handler does.
            6 => [0xa0, 0x20].iter().for_each(|port| pic.write(*port, 0x20)),
            _ => pic.reset(),
        }
        Some(())
    };
    while step().is_some() {}
}

/// The interval timer.
pub fn pit(data: &[u8]) {
    const PORTS: [u16; 8] = [0x40, 0x41, 0x42, 0x43, 0x61, 0x40, 0x43, 0x40];
    let mut script = Script(data);
    let mut pit = PitModel::new();
    let mut now = 0u64;
    let mut step = || {
        let operation = script.byte()?;
        let port = PORTS[operation as usize & 7];
        match operation >> 6 {
            0 => now = now.saturating_add(script.duration()?),
            1 | 2 => pit.write(port, script.byte()?),
            _ => {
                let mut copy = copied(&pit, PitModel::new());
                copy.resume_at(now);
                assert_eq!(copy.next_rise0(), pit.next_rise0());
                assert_eq!(copy.read(port), pit.read(port), "port {port:#x}");
            }
        }
        pit.set_time(now);
        if let Some(rise) = pit.next_rise0().filter(|rise| *rise < u64::MAX) {
            assert!(rise > now);
            let mut later = pit.clone();
            later.set_time(rise - 1);
            assert!(!later.out0(), "before the rise that was announced: {later:?}");
            later.set_time(rise);
            assert!(later.out0(), "at the time of the rise that was announced: {later:?}");
        }
        Some(())
    };
    while step().is_some() {}
}

/// The I/O APIC.
pub fn ioapic(data: &[u8]) {
    let mut script = Script(data);
    let mut apic = IoApicModel::new();
    let mut step = || {
        let operation = script.byte()?;
        let sent = match operation >> 5 {
            0 => apic.write(0, script.byte()?.into()),
            1 => apic.write(0x10, script.dword()?),
            2 => apic.write(0x40, script.byte()?.into()),
            3 => apic.set_irq((operation & 0x1f).into(), true).into_iter().collect(),
            4 => apic.set_irq((operation & 0x1f).into(), false).into_iter().collect(),
            5 => {
                let vector = script.byte()?;
                let (wanted, sent) = (apic.wants_eoi(vector), apic.eoi(vector));
                assert!(wanted || sent.is_empty());
                sent
            }
            6 => {
                apic.write(0, 0x10 + operation as u32 % 32);
                apic.write(0x10, script.dword()? & 0xffff)
            }
            _ => {
                let copy = copied(&apic, IoApicModel::new());
                let offset = (operation as u64 & 7) << 4;
                assert_eq!(copy.read(offset), apic.read(offset));
                Vec::new()
            }
        };
        for msi in sent {
            assert_eq!(msi.address & !0xf_f004, 0xfee0_0000);
            assert_eq!(msi.data & !0x87ff, 0);
        }
        Some(())
    };
    while step().is_some() {}
}

/// The keyboard controller.
pub fn i8042(data: &[u8]) {
    const PORTS: [u16; 4] =
        [kbd::spec::PORT_DATA, kbd::spec::PORT_COMMAND, kbd::spec::PORT_SYSTEM_A, kbd::spec::PORT_COMMAND];
    let mut script = Script(data);
    let devices = script.byte().unwrap_or(0);
    let new = || I8042Model::new(devices & 1 != 0, devices & 2 != 0);
    let mut model = new();
    let mut step = || {
        let operation = script.byte()?;
        let port = PORTS[operation as usize & 3];
        match operation >> 5 {
            0 | 1 => drop(model.write(port, script.byte()?)),
            2 => model.from_keyboard(script.byte()?),
            3 => model.from_aux(script.byte()?),
            _ => {
                let mut copy = copied(&model, new());
                assert_eq!(copy.interrupts(), model.interrupts());
                assert_eq!(copy.read(port), model.read(port));
            }
        }
        Some(())
    };
    while step().is_some() {}
}

/// The keyboard, and the names of keys.
pub fn keyboard(data: &[u8]) {
    let mut script = Script(data);
    let mut keyboard = KeyboardModel::new();
    let _ = Stroke::named(&String::from_utf8_lossy(data));
    let _ = Stroke::typing(&String::from_utf8_lossy(data));
    let keys = ["a", "f7", "delete", "ctrl"].map(|name| Key::named(name).expect("a key"));
    let mut step = || {
        let operation = script.byte()?;
        match operation >> 6 {
            0 => keyboard.receive(script.byte()?),
            1 => keyboard.key(keys[usize::from(operation & 3)], operation & 4 != 0),
            2 => drop(keyboard.take()),
            _ => {
                let mut copy = copied(&keyboard, KeyboardModel::new());
                assert_eq!((copy.held(), copy.take()), (keyboard.held(), keyboard.take()));
            }
        }
        Some(())
    };
    while step().is_some() {}
}

/// The display adapter.
pub fn vga(data: &[u8]) {
    const SIZE: u64 = 128 << 10;
    static MEMORY: LazyLock<VideoMemory> =
        LazyLock::new(|| VideoMemory::new(SIZE).expect("memory for fuzzing"));
    let mut script = Script(data);
    let mut vga = VgaModel::new(SIZE);
    let mut pictures = 0;
    let mut step = || {
        let operation = script.byte()?;
        let port = 0x3b0 + u16::from(operation & 0x1f) + u16::from(operation & 0x20) / 2;
        match operation >> 5 {
            0 | 1 => vga.write(port, script.byte()?),
            2 => vga.dispi_write((operation & 0xf).into(), script.word()?, &MEMORY),
            3 => vga.window_write((script.dword()? % (SIZE as u32)).into(), operation, &MEMORY),
            4 => drop(vga.window_read((script.dword()? % (SIZE as u32)).into(), &MEMORY)),
            // Large ones take their time.
            5 if pictures < 2 => {
                let picture = vga.picture(&MEMORY);
                assert_eq!(picture.pixels.len(), picture.width * picture.height * 3);
                let _ = vga.text(&MEMORY);
                pictures += 1;
            }
            6 => drop(vga.read(port)),
            _ => {
                let copy = copied(&vga, VgaModel::new(SIZE));
                assert_eq!(copy.dispi_read(operation.into()), vga.dispi_read(operation.into()));
            }
        }
        Some(())
    };
    while step().is_some() {}
}

/// The ACPI power management registers.
pub fn acpi_pm(data: &[u8]) {
    let mut script = Script(data);
    let mut model = AcpiPmModel::new();
    let mut now = 0u64;
    let mut step = || {
        let operation = script.byte()?;
        let port = pm::spec::PORT_BASE + operation as u16 % pm::spec::PORT_COUNT;
        match operation >> 6 {
            0 => now = now.saturating_add(script.duration()?),
            1 => {
                let (data, len) = script.access()?;
                model.write(port, &data[..len]);
            }
            2 => {
                model.raise(script.word()?);
                model.raise_gpe(script.byte()?.into());
            }
            _ => {
                let mut copy = copied(&model, AcpiPmModel::new());
                copy.resume_at(now);
                copy.set_time(now);
                let (mut one, mut other) = ([0; 8], [0; 8]);
                copy.read(port, &mut one);
                model.read(port, &mut other);
                assert_eq!((one, copy.interrupt()), (other, model.interrupt()));
            }
        }
        model.set_time(now);
        if let Some(carry) = model.next_carry().filter(|carry| *carry < u64::MAX) {
            assert!(carry > now);
            let mut later = model.clone();
            later.set_time(carry - 1);
            assert_eq!(later.interrupt(), model.interrupt());
            later.set_time(carry);
            assert!(later.interrupt());
        }
        Some(())
    };
    while step().is_some() {}
}
