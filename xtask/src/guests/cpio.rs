//! Archives in the form that Linux unpacks as an initramfs: cpio, variant `newc`
//! (kernel documentation, `driver-api/early-userspace/buffer-format`).

/// Builds one archive in memory. The same calls give the same bytes.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    /// Adds a folder; its parent must have been added before.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file with these permission bits.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.entry(path, FILE | permissions, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device node.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(contents.len()).expect("files in an initramfs are small");
        let name_size = path.len() as u32 + 1;
        let header = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_at_multiples_of_four_and_say_their_sizes() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.character_device("dev/console", 5, 1);
        archive.file("hello", 0o644, b"hello");
        archive.symlink("link", "hello");
        let bytes = archive.finish();

        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701", "an entry begins at {at}");
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                let text = std::str::from_utf8(&bytes[start..start + 8]).expect("hexadecimal digits");
                usize::from_str_radix(text, 16).expect("hexadecimal digits")
            };
            let (size, name_size) = (field(6), field(11));
            let name = at + 110;
            names.push(String::from_utf8(bytes[name..name + name_size - 1].to_vec()).expect("a name"));
            let contents = (name + name_size).next_multiple_of(4);
            if names.last().map(String::as_str) == Some("hello") {
                assert_eq!(&bytes[contents..contents + size], b"hello");
                assert_eq!(field(1), 0o100_644);
            }
            at = (contents + size).next_multiple_of(4);
        }
        assert_eq!(names, ["dev", "dev/console", "hello", "link", TRAILER]);
    }
}
