use super::*;
use device::limit::{Limits, Rate};
use disk::{Access, Raw};
use memory::{Bytes, GuestAddress};

const LIST: u64 = 0x1000;
const FIS: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const DATA: u64 = 0x1_0000;

pub(crate) fn file(bytes: &[u8]) -> Arc<dyn Disk> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("arnia-ahci-{}-{n}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let disk = Arc::new(Raw::open(&path, Access::ReadWrite).unwrap());
    std::fs::remove_file(path).unwrap();
    disk
}

/// Plays a driver.
struct Rig {
    ahci: Arc<Ahci>,
    /// Of the disk.
    limiter: Arc<Limiter>,
    ram: Arc<Ram>,
}

impl Rig {
    fn new() -> Rig {
        let ram = Arc::new(Ram::new(1 << 20).unwrap());
        let disc: Vec<u8> = (0..5000u32).map(|at| (at / 100) as u8).collect();
        let limiter = Arc::<Limiter>::default();
        let drives = vec![
            DriveConfig::Disk { disk: file(&[7; 8192]), serial: "S1".into(), limiter: limiter.clone() },
            DriveConfig::Cd(Some(file(&disc))),
        ];
        let ahci = Ahci::new(drives, ram.clone(), IrqLine::unconnected()).unwrap();
        ahci.config_write(reg::COMMAND, &6u16.to_le_bytes());
        let rig = Rig { ahci, limiter, ram };
        for port in 0..2 {
            rig.set(port, P_CLB, LIST as u32);
            rig.set(port, P_FB, FIS as u32);
            rig.set(port, P_CMD, CMD_FIS | CMD_START);
        }
        rig
    }

    fn set(&self, port: u64, register: u64, value: u32) {
        self.ahci.bar_write(BAR, PORT_FIRST + port * PORT_SIZE + register, &value.to_le_bytes());
    }

    fn get(&self, port: u64, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.ahci.bar_read(BAR, PORT_FIRST + port * PORT_SIZE + register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.ram.guest().write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.guest().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    /// Issues a command with one piece of data and waits for it; returns the task file.
    fn run(&self, port: u64, fis: &[u8], packet: &[u8], len: u32) -> u32 {
        self.run_in_pieces(port, fis, packet, &[len])
    }

    /// The same with data in pieces of these lengths, one behind the other.
    fn run_in_pieces(&self, port: u64, fis: &[u8], packet: &[u8], lens: &[u32]) -> u32 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&(5u32 | (lens.len() as u32) << 16).to_le_bytes());
        header[8..12].copy_from_slice(&(TABLE as u32).to_le_bytes());
        self.put(LIST, &header);
        self.put(TABLE, &[0; 64]);
        self.put(TABLE, fis);
        self.put(TABLE + 0x40, &[0; 16]);
        self.put(TABLE + 0x40, packet);
        let mut at = DATA;
        for (index, len) in (0..).zip(lens) {
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&at.to_le_bytes());
            entry[12..].copy_from_slice(&(len - 1).to_le_bytes());
            self.put(TABLE + 0x80 + 16 * index, &entry);
            at += u64::from(*len);
        }
        self.set(port, P_IS, u32::MAX);
        self.set(port, P_CI, 1);
        while self.get(port, P_IS) & (INT_REGISTER | INT_ERROR) == 0 {
            std::thread::yield_now();
        }
        self.get(port, P_TFD)
    }

    fn packet(&self, packet: &[u8], len: u32) -> u32 {
        self.run(1, &[FIS_FROM_HOST, 0x80, PACKET, 1], packet, len)
    }

    /// What a driver does after a failure.
    fn start_again(&self, port: u64) {
        self.set(port, P_CMD, CMD_FIS);
        self.set(port, P_CMD, CMD_FIS | CMD_START);
    }
}

#[test]
fn a_disk_is_identified_read_and_written() {
    let rig = Rig::new();
    assert_eq!(rig.run(0, &[FIS_FROM_HOST, 0x80, IDENTIFY], &[], 512), u32::from(STATUS_READY));
    let identity = rig.bytes(DATA, 512);
    assert_eq!((identity[0], &identity[20..24], identity[120]), (0x40, &b"1S  "[..], 16));
    assert_eq!(rig.bytes(FIS + RECEIVED_PIO, 1), [FIS_PIO]);
    assert_eq!(rig.bytes(LIST + 4, 4), 512u32.to_le_bytes());
    rig.put(DATA, &[9; 512]);
    let at = |command: u8| [FIS_FROM_HOST, 0x80, command, 0, 3, 0, 0, 0x40, 0, 0, 0, 0, 1, 0];
    assert_eq!(rig.run(0, &at(0x35), &[], 512), u32::from(STATUS_READY));
    rig.put(DATA, &[0; 512]);
    assert_eq!(rig.run(0, &at(0x25), &[], 512), u32::from(STATUS_READY));
    assert_eq!(rig.bytes(DATA, 512), [9; 512]);
    assert_eq!(rig.run(0, &[FIS_FROM_HOST, 0x80, FLUSH], &[], 2), u32::from(STATUS_READY));
    // Beyond the end: the port stands still until it is started again.
    let mut beyond = at(0x25);
    beyond[4] = 16;
    assert_ne!(rig.run(0, &beyond, &[], 512) & u32::from(STATUS_ERROR), 0);
    assert_eq!(rig.get(0, P_CI), 1);
    rig.start_again(0);
    assert_eq!(rig.run(0, &at(0x25), &[], 512), u32::from(STATUS_READY));
}

/// A guest that believes the write cache to be off does not flush.
#[test]
fn features_that_cannot_be_had_are_refused() {
    let rig = Rig::new();
    let set = |port: u64, feature: u8| {
        let task = rig.run(port, &[FIS_FROM_HOST, 0x80, SET_FEATURES, feature], &[], 2);
        if task & u32::from(STATUS_ERROR) != 0 {
            rig.start_again(port);
        }
        task
    };
    let refused = u32::from(STATUS_READY | STATUS_ERROR) | u32::from(ERROR_ABORTED) << 8;
    for port in 0..2 {
        for feature in [FEATURE_ENABLE_WRITE_CACHE, FEATURE_TRANSFER_MODE] {
            assert_eq!(set(port, feature), u32::from(STATUS_READY), "{feature:#x}");
        }
        // The write cache off, look-ahead, power management, and what there is not.
        for feature in [0x82, 0x55, 0xaa, 0x05, 0x10, 0, 0xff] {
            assert_eq!(set(port, feature), refused, "{feature:#x}");
        }
    }
    assert_eq!(rig.run(0, &[FIS_FROM_HOST, 0x80, IDENTIFY], &[], 512), u32::from(STATUS_READY));
    assert_eq!(rig.bytes(DATA + 2 * 85, 1)[0] & 0x20, 0x20, "the write cache is on");
}

#[test]
fn a_drive_is_read_to_its_last_block_and_changes_discs() {
    let rig = Rig::new();
    assert_eq!(rig.run(1, &[FIS_FROM_HOST, 0x80, IDENTIFY_PACKET], &[], 512), u32::from(STATUS_READY));
    assert_eq!(rig.bytes(DATA, 2), [0xc0, 0x85]);
    // The first command after power-on is refused once.
    assert_ne!(rig.packet(&[0], 2) & 1, 0);
    rig.start_again(1);
    assert_eq!(rig.packet(&[0], 2), u32::from(STATUS_READY));
    // 5120 bytes are whole sectors: block 2 is half there.
    rig.put(DATA, &[0xff; 4096]);
    assert_eq!(rig.packet(&[0x28, 0, 0, 0, 0, 1, 0, 0, 2], 4096), u32::from(STATUS_READY));
    let read = rig.bytes(DATA, 4096);
    assert_eq!((read[0], read[2951], read[2952], read[4095]), (20, 49, 0, 0));
    // In pieces, some of which lie behind the end of what is stored.
    rig.put(DATA, &[0xff; 4096]);
    let read_two = [&[FIS_FROM_HOST, 0x80, PACKET, 1][..], &[0x28, 0, 0, 0, 0, 1, 0, 0, 2]];
    let task = rig.run_in_pieces(1, read_two[0], read_two[1], &[2048, 1024, 512, 512]);
    assert_eq!((task, rig.bytes(DATA, 4096)), (u32::from(STATUS_READY), read));
    rig.ahci.change_disc(1, None, false).unwrap();
    assert_ne!(rig.packet(&[0], 2) & 1, 0);
    rig.start_again(1);
    rig.ahci.change_disc(1, Some(file(&[5; 2048])), false).unwrap();
    assert_ne!(rig.packet(&[0], 2) & 1, 0, "it is another disc");
    rig.start_again(1);
    assert_eq!(rig.packet(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1], 2048), u32::from(STATUS_READY));
    assert_eq!(rig.bytes(DATA, 2), [5, 5]);
    rig.packet(&[0x1e, 0, 0, 0, 1], 2);
    assert_eq!(rig.ahci.change_disc(1, None, false), Err(DiscError::Held));
    assert_eq!(rig.ahci.change_disc(0, None, true), Err(DiscError::NoSuchDrive));
    assert_eq!(rig.ahci.change_disc(1, None, true), Ok(()));
}

#[test]
fn what_waits_for_a_limit_holds_up_no_other_port_and_goes_on_when_it_is_lifted() {
    let rig = Rig::new();
    let read = [FIS_FROM_HOST, 0x80, 0x25, 0, 3, 0, 0, 0x40, 0, 0, 0, 0, 1, 0];
    // Some eight minutes for what is read first.
    let slow = Limits { bytes: Some(Rate { per_second: 1, burst: 0 }), operations: None };
    rig.limiter.set(slow);
    assert_eq!(rig.run(0, &[FIS_FROM_HOST, 0x80, IDENTIFY], &[], 512), u32::from(STATUS_READY));
    assert_eq!(rig.limiter.counted(), (0, 0), "what tells of the disk costs nothing");
    assert_eq!(rig.run(0, &read, &[], 512), u32::from(STATUS_READY));
    assert_eq!(rig.limiter.counted(), (1, 512));
    // The next waits, and is where the command list of port 0 says; the drive has one of its own.
    rig.set(0, P_CLB, 0x4000);
    rig.put(0x4000, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0]);
    rig.put(0x5000, &[FIS_FROM_HOST, 0x80, FLUSH]);
    rig.set(0, P_CI, 1);
    rig.packet(&[0], 2);
    rig.start_again(1);
    assert_eq!(rig.packet(&[0], 2), u32::from(STATUS_READY));
    assert_eq!(rig.get(0, P_CI), 1, "the limit is not kept");
    // It outlives a pause, which it does not hold up.
    rig.ahci.pause();
    rig.ahci.resume();
    assert_eq!(rig.get(0, P_CI), 1);
    rig.limiter.set(Limits::default());
    rig.ahci.wake();
    while rig.get(0, P_CI) != 0 {
        std::thread::yield_now();
    }
    assert_eq!(rig.limiter.counted(), (2, 512));
    // A port that is stopped forgets what waits.
    rig.limiter.set(slow);
    rig.limiter.charge(0, 512);
    rig.set(0, P_CI, 1);
    rig.start_again(0);
    assert_eq!(rig.get(0, P_CI), 0);
}

#[test]
fn a_saved_controller_does_what_was_issued() {
    let rig = Rig::new();
    rig.ahci.pause();
    let header = [5u8, 0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0, 0];
    rig.put(LIST, &header);
    rig.put(TABLE, &[FIS_FROM_HOST, 0x80, FLUSH]);
    rig.set(0, P_IS, u32::MAX);
    rig.set(0, P_CI, 1);
    let saved = serde_json::to_string(&rig.ahci.save()).unwrap();
    let other = Rig::new();
    other.put(LIST, &header);
    other.put(TABLE, &[FIS_FROM_HOST, 0x80, FLUSH]);
    other.ahci.pause();
    other.ahci.restore(serde_json::from_str(&saved).unwrap()).unwrap();
    assert_eq!(other.get(0, P_CI), 1);
    other.ahci.resume();
    while other.get(0, P_CI) != 0 {
        std::thread::yield_now();
    }
    assert_eq!(other.get(0, P_TFD), u32::from(STATUS_READY));
    rig.ahci.reset();
    assert_eq!((rig.get(0, P_CI), rig.get(1, P_SIG)), (0, SIGNATURE_ATAPI));
}
