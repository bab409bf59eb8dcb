//! A disk without partitions, of an archive that holds a root file system.
//!
//! Nothing is mounted and no root is needed: `mke2fs` writes the file system from a folder.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::Result;
use crate::error::AboutFile;
use crate::progress::Progress;
use crate::tools;

/// The disk's name in the folder.
pub(crate) const DISK: &str = "disk.img";
/// The name of the newest kernel in the system's `/boot`, if there is one, and of its initrd.
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const INITRD: &str = "initrd.img";

/// What every kernel is told.
pub(crate) const APPEND: &str = "root=/dev/vda rw console=ttyS0";

/// Makes the disk of `size` bytes in `folder`, and copies kernel and initrd out of it.
///
/// # Errors
/// If a tool fails: the archive is damaged, the disk is too small.
pub(crate) fn make(archive: &Path, folder: &Path, size: u64, progress: &mut dyn Progress) -> Result<()> {
    let (root, disk) = (folder.join("root"), folder.join(DISK));
    // Set-user-ID programs lie in it for a while.
    fs::DirBuilder::new().mode(0o700).create(&root).about("create", &root)?;
    File::create(&disk).and_then(|file| file.set_len(size)).about("create", &disk)?;
    // One shell for all steps, because without root it is fakeroot that remembers the owners between them.
    // Attributes for security modules of another host would be refused by this one's.
    let script = r#"tar --extract --file "$1" --directory "$2" --preserve-permissions --numeric-owner \
            --acls --xattrs --xattrs-include 'user.*' --xattrs-include security.capability
        mke2fs -q -t ext4 -L root -E lazy_itable_init=0,lazy_journal_init=0 -d "$2" "$3"
        newest() { ls -v "$@" 2> /dev/null | tail -n 1; }
        kernel=$(newest "$2"/boot/vmlinuz-*) initrd=$(newest "$2"/boot/initrd.img-*)
        [ -z "$kernel" ] || cp "$kernel" "$4/vmlinuz"
        [ -z "$initrd" ] || cp "$initrd" "$4/initrd.img""#;
    let mut command = if tools::is_root() { tools::command("sh") } else { tools::command("fakeroot") };
    if !tools::is_root() {
        command.arg("sh");
    }
    command.args(["-eu", "-c", script, "make-disk"]).args([archive, &root, &disk, folder]);
    let done = tools::run(&mut command, progress);
    // Its folders may forbid their removal to whoever is not root.
    let mut chmod = tools::command("chmod");
    let _ = chmod.args(["-R", "u+rwX"]).arg(&root).status();
    fs::remove_dir_all(&root).about("remove", &root)?;
    done
}
