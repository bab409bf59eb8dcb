//! Bodies of the fuzz targets: plain functions of bytes that must neither panic nor hang.

use crate::snapshot::state::FunctionSaved;
use crate::snapshot::{MachineSaved, checksum, manifest};
use crate::spec::VmSpec;
use api::worker::config::VmConfig;
use clock::{Clock, Timers};
use cpu::{Engine, Vcpu};
use cpu_bt::{BtEngine, Options};
use device::pci::Bdf;
use device::{Bus, Msi, MsiSink};
use disk::{Access, Raw};
use memory::Ram;
use net::NatConfig;
use platform::pci::Windows;
use platform::{Platform, PlatformConfig};
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use virtio::blk::{Blk, BlkConfig};
use virtio::console::Console;
use virtio::fs::Fs;
use virtio::net::Net;
use virtio::rng::Rng;
use virtio::vsock::{Vsock, VsockConfig};
use virtio::{VirtioDevice, VirtioPci};

/// Reads `data` as a line of the control protocol.
pub fn control_line(data: &[u8]) {
    let _ = crate::control::is_request(data);
}

/// Reads `data` as a configuration file and checks it.
pub fn config(data: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<VmConfig>(data) {
        let _ = VmSpec::try_from(config);
    }
}

/// Reads `data` as the file of a snapshot's manifest, and as what is inside it.
pub fn manifest(data: &[u8]) {
    let _ = manifest::decode(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let hash = checksum::of_bytes(data);
        let file = format!("{{\"arnia_snapshot\":1,\"blake3\":\"{hash}\",\"manifest\":{text}}}");
        if let Ok(manifest) = manifest::decode(file.as_bytes()) {
            assert_eq!(manifest::decode(&manifest::encode(&manifest)).as_ref(), Ok(&manifest));
        }
    }
}

/// Reads `data` as the state of a machine.
pub fn state(data: &[u8]) {
    let _ = MachineSaved::decode(data);
}

/// Changes the saved state of a machine with every device in places that `data` chooses, and has it taken over by
/// a fresh one: every part either refuses it or works on.
pub fn machine_state(data: &[u8]) {
    let machine = Bench::new();
    let mut state = serde_json::to_value(machine.save()).expect("plain data");
    for change in data.chunks(8) {
        spoil(&mut state, change);
    }
    let Ok(state) = serde_json::from_value::<MachineSaved>(state) else { return };
    Bench::new().restore(state);
}

/// Changes one value; the bytes say which and how.
fn spoil(value: &mut Value, bytes: &[u8]) {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let mut at = value;
    for step in 0..6 {
        let choice = usize::from(byte(step)) << 3 ^ usize::from(byte(7));
        let is_empty = match &at {
            Value::Object(fields) => fields.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => true,
        };
        if is_empty {
            break;
        }
        at = match at {
            Value::Object(fields) => {
                let index = choice % fields.len();
                fields.values_mut().nth(index).expect("one of them")
            }
            Value::Array(items) => {
                let index = choice % items.len();
                &mut items[index]
            }
            _ => unreachable!("left above"),
        };
    }
    let change = byte(6);
    match at {
        Value::Number(number) => {
            let old = number.as_u64().unwrap_or(0);
            *at = match change % 6 {
                0 => old ^ 1 << (byte(7) % 64),
                1 => 0,
                2 => u64::from(byte(7)),
                3 => u64::MAX >> (change & 0x38),
                4 => old.wrapping_add(1),
                _ => 1 << (byte(7) % 64),
            }
            .into();
        }
        Value::Bool(flag) => *flag = !*flag,
        Value::Null => *at = u64::from(byte(7)).into(),
        Value::String(text) => text.push('x'),
        Value::Array(items) => match change % 3 {
            0 => items.clear(),
            1 => items.push(u64::from(byte(7)).into()),
            _ => items.truncate(items.len() / 2),
        },
        Value::Object(_) => {}
    }
}

/// A machine with every kind of device, without threads of its own.
struct Bench {
    platform: Platform,
    functions: Vec<Arc<VirtioPci>>,
    vcpu: Box<dyn Vcpu>,
    socket: std::path::PathBuf,
}

/// Guest time stands still, so that an input does the same each time.
static TIMERS: LazyLock<Timers> = LazyLock::new(|| {
    let clock = Arc::new(Clock::new());
    clock.pause();
    Timers::new(clock).expect("a thread for fuzzing")
});

struct NoMsi;

impl MsiSink for NoMsi {
    fn send_msi(&self, _: Msi) {}
}

impl Bench {
    fn new() -> Bench {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir();
        let ram = Arc::new(Ram::new(1 << 20).expect("memory for fuzzing"));
        let (pio, mmio, msi) = (Arc::new(Bus::new()), Arc::new(Bus::new()), Arc::new(NoMsi));
        let cpuid = x86::cpuid::build("x86-64-v1", 1, TIMERS.clock().tsc_hz()).expect("every host has it");
        let vm = BtEngine::new(Options::default())
            .create_vm(cpu::VmConfig {
                ram: ram.clone(),
                clock: TIMERS.clock().clone(),
                timers: TIMERS.clone(),
                vcpus: 1,
                cpuid,
            })
            .expect("an engine");
        let platform = Platform::new(PlatformConfig {
            timers: TIMERS.clone(),
            pio,
            mmio,
            memory: ram.guest().clone(),
            msi: msi.clone(),
            intr: Box::new(|_| {}),
            events: Arc::new(|_| {}),
            serial: vec![Box::new(std::io::sink())],
            debug_console: None,
            debug_exit: false,
            windows: Windows::above_ram(1 << 20, 1 << 30),
            firmware: None,
            display: None,
        })
        .expect("empty buses");
        let image = folder.join(format!("arnia-fuzz-{}-{number}.img", std::process::id()));
        std::fs::write(&image, [0; 4096]).expect("a disk");
        let disk = Arc::new(Raw::open(&image, Access::ReadWrite).expect("a disk"));
        let _ = std::fs::remove_file(image);
        let socket = folder.join(format!("arnia-fuzz-{}-{number}.sock", std::process::id()));
        let vsock = VsockConfig { cid: 3, path: socket.clone() };
        let nat = NatConfig { outside: net::Outside::Restricted, ..NatConfig::default() };
        let devices: [(&str, Box<dyn VirtioDevice>); 6] = [
            (
                "net0",
                Box::new(Net::new([2, 0, 0, 0, 0, 1], Box::new(net::Nat::new(nat).expect("a network")))),
            ),
            ("disk0", Box::new(Blk::new(disk, BlkConfig::default()))),
            ("vsock", Box::new(Vsock::new(vsock).expect("a socket"))),
            ("console", Box::new(Console::new(Box::new(std::io::sink())).expect("a console"))),
            ("rng", Box::new(Rng::new())),
            ("fs", Box::new(Fs::new().expect("a device"))),
        ];
        let functions = devices.into_iter().enumerate().map(|(slot, (name, device))| {
            let line = platform.irqs.pci_line(slot as u8 + 2);
            let function = VirtioPci::new(name, device, ram.clone(), msi.clone(), line).expect("a function");
            let place = Bdf::on_bus_0(slot as u8 + 2, 0);
            platform.pci.add(place, function.clone()).expect("a free place");
            function.pause();
            function
        });
        let functions = functions.collect();
        platform.pci.assign_bars().expect("room");
        Bench { platform, functions, vcpu: vm.create_vcpu(0).expect("a processor"), socket }
    }

    fn save(mut self) -> MachineSaved {
        let functions = self.functions.iter();
        let functions = functions.map(|f| FunctionSaved { name: f.name().to_owned(), state: f.save() });
        let vcpu = self.vcpu.state().expect("between runs");
        MachineSaved::new(TIMERS.clock().save(), vec![vcpu], self.platform.save(), functions.collect(), None)
    }

    fn restore(&mut self, saved: MachineSaved) {
        for state in &saved.vcpus {
            if self.vcpu.set_state(state).is_ok() {
                let own = self.vcpu.state().expect("between runs");
                self.vcpu.set_state(&own).expect("its own state");
            }
        }
        if self.platform.restore(saved.platform).is_ok() {
            self.platform.restore(self.platform.save()).expect("its own state");
        }
        for (function, saved) in self.functions.iter().zip(saved.functions) {
            if function.restore(saved.state).is_ok() {
                function.restore(function.save()).expect("its own state");
                // Workers begin on whatever rings there are.
                function.resume();
                function.pause();
            }
        }
        self.platform.pci.remap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.functions.iter().for_each(|function| function.reset());
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn spoilt_snapshots_are_refused_or_work() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let manifest = serde_json::to_vec(&crate::snapshot::manifest::tests::example()).unwrap();
        for _ in 0..2000 {
            let mut data = manifest.clone();
            for _ in 0..1 + random() % 3 {
                let at = random() as usize % data.len();
                data[at] = b"\"{9-0,]x"[random() as usize % 8];
            }
            super::manifest(&data);
            super::state(&data);
        }
        for round in 0..400 {
            let changes: Vec<u8> = (0..1 + round % 3).flat_map(|_| random().to_le_bytes()).collect();
            super::machine_state(&changes);
        }
    }

    #[test]
    fn mutated_lines_and_files_are_handled() {
        let seeds: [&[u8]; 4] = [
            br#"{"id": 7, "version": 1, "op": "counters"}"#,
            br#"{"op": "status"}"#,
            br#"{"kernel": "k", "memory": "1G", "cpus": 2, "disks": [{"path": "d", "serial": "s"}]}"#,
            br#"{"kernel": "k", "nets": [{"user": {"mac": "a6:41:72:00:00:01", "forward": ["1:2/udp"]}}]}"#,
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        for round in 0..5000 {
            let mut data = seeds[round % seeds.len()].to_vec();
            for _ in 0..1 + below(4) {
                let at = below(data.len());
                data[at] = [b'"', b'{', b'9', b'-', 0, 0xff, b',', below(256) as u8][below(8)];
            }
            super::control_line(&data);
            super::config(&data);
        }
    }
}
