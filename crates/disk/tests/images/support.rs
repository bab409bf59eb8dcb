//! A folder, a reference disk, and QEMU's tools.

use disk::{Buffers, Disk, Durability};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: a process that another test starts has for a moment, until it becomes `qemu-img`, what
/// this one has open, and with that its locks.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `qemu-img`; `None` where it is not installed.
pub(crate) fn qemu_img(arguments: &[&str]) -> Option<(bool, String)> {
    let output = match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: qemu-img is not installed");
            return None;
        }
        Err(error) => panic!("qemu-img cannot be run: {error}"),
    };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), text))
}

/// Runs `qemu-img`, which must succeed; ends the test where it is missing.
macro_rules! qemu {
    ($($argument:expr),+ $(,)?) => {
        match $crate::support::qemu_img(&[$($argument),+]) {
            None => return,
            Some((ok, text)) => assert!(ok, "qemu-img {:?}: {text}", [$($argument),+]),
        }
    };
}
pub(crate) use qemu;

pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("disk-images-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// A path in it, as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Bytes with text-like parts, noise and holes, of a size that is no round number.
pub(crate) fn reference() -> Vec<u8> {
    let mut bytes = vec![0; (9 << 20) + 512 * 37];
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut noise = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for (block, part) in bytes.chunks_mut(32 << 10).enumerate() {
        match block % 7 {
            0 | 3 => {}
            1 => part.iter_mut().for_each(|byte| *byte = noise() as u8),
            2 => part[..512].fill(block as u8 | 1),
            5 => part.iter_mut().step_by(4096).for_each(|byte| *byte = 7),
            _ => part.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 50) as u8),
        }
    }
    // The last sector is data.
    let len = bytes.len();
    bytes[len - 10..].fill(0xa5);
    bytes
}

pub(crate) fn read_all(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.info().size as usize];
    // In pieces that are no round number either.
    for (index, part) in bytes.chunks_mut(123_457).enumerate() {
        disk.read(index as u64 * 123_457, &mut Buffers::from_mut(part)).unwrap();
    }
    bytes
}

pub(crate) fn write(disk: &dyn Disk, offset: u64, bytes: &[u8]) {
    disk.write(offset, &Buffers::from_slice(bytes), Durability::AtFlush).unwrap();
}

pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
