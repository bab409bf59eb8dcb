//! Check sums of a snapshot's files.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

/// The unit in which large files are hashed.
const CHUNK: u64 = 1 << 20;

/// The plain hash of bytes.
pub fn of_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The hash of a large file with holes: see `api::worker::snapshot::FileEntry`. It is that of the contents,
/// however the file system keeps them. `progress` is called with the bytes done; it may break off.
///
/// # Errors
/// As the host fails; [`io::ErrorKind::Interrupted`] when it was broken off.
pub fn of_file(file: &File, size: u64, progress: &dyn Fn(u64) -> ControlFlow<()>) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK as usize];
    let mut next = 0;
    for data in memory::data_ranges(file, 0..size) {
        let data = data?;
        let mut index = next.max(data.start / CHUNK);
        while index * CHUNK < data.end {
            let len = CHUNK.min(size - index * CHUNK) as usize;
            file.read_exact_at(&mut chunk[..len], index * CHUNK)?;
            if !is_zero(&chunk[..len]) {
                hasher.update(&index.to_le_bytes());
                hasher.update(&chunk[..len]);
            }
            index += 1;
            if progress(index * CHUNK).is_break() {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        next = index;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_written_zeroes_are_the_same() {
        let size = 5 * CHUNK + 100;
        let make = |name: &str| {
            let path = std::env::temp_dir().join(format!("arnia-hash-{name}-{}", std::process::id()));
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(b"hello", CHUNK + 77).unwrap();
            file.write_all_at(b"end", size - 3).unwrap();
            file
        };
        let go_on = |_| ControlFlow::Continue(());
        let (sparse, full, other) = (make("sparse"), make("full"), make("other"));
        full.write_all_at(&vec![0; 2 * CHUNK as usize], 2 * CHUNK).unwrap();
        other.write_all_at(b"!", 3 * CHUNK).unwrap();
        let sum = of_file(&sparse, size, &go_on).unwrap();
        assert_eq!(sum, of_file(&full, size, &go_on).unwrap());
        assert_ne!(sum, of_file(&other, size, &go_on).unwrap());
        let mut by_hand = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK as usize];
        chunk[77..82].copy_from_slice(b"hello");
        by_hand.update(&1u64.to_le_bytes()).update(&chunk);
        by_hand.update(&5u64.to_le_bytes()).update(&[&[0; 97][..], b"end"].concat());
        assert_eq!(sum, by_hand.finalize().to_hex().to_string());
        assert!(of_file(&sparse, size, &|_| ControlFlow::Break(())).is_err());
        sparse.set_len(CHUNK).unwrap();
        assert!(of_file(&sparse, size, &go_on).is_ok_and(|other| other != sum));
    }
}
