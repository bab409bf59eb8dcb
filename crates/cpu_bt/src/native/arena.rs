//! Memory for generated host code: written through one mapping, executed through another, so that no
//! page is ever both.

use super::Entry;
use crate::block::cache::AddressHasher;
use crate::block::{Detail, Handler};
use iced_x86::Instruction;
use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::BuildHasherDefault;
use std::ptr::NonNull;
use std::rc::Rc;

/// Size of an arena in bytes: about 130,000 functions.
const ARENA_LEN: usize = 8 << 20;
/// The arena counts as full when less than this is left: more than one block can need.
const RESERVE: usize = 64 << 10;
/// Most instructions whose handlers and details are noted.
const INSTRUCTIONS_MAX: usize = 8192;
/// Functions begin at multiples of this.
const FUNCTION_ALIGN: usize = 16;

/// The host code of one vCPU.
pub(crate) struct Stubs {
    /// Made when the first function is.
    arena: Option<Arena>,
    used: usize,
    /// Functions by their bytes, so that equal ones exist once.
    known: HashMap<Box<[u8]>, Entry>,
    /// Handlers and details of instructions, without addresses.
    instructions: HashMap<Instruction, (Handler, Rc<Detail>), BuildHasherDefault<AddressHasher>>,
}

/// Two mappings of the same anonymous memory.
struct Arena {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
}

impl Stubs {
    pub(crate) fn new() -> Stubs {
        Stubs { arena: None, used: 0, known: HashMap::new(), instructions: HashMap::default() }
    }

    /// Whether [`Stubs::clear`] is due. Only when no function of it runs and all blocks are dropped.
    pub(crate) fn is_full(&self) -> bool {
        self.used + RESERVE > ARENA_LEN
    }

    /// Forgets all functions. Only when none runs and all blocks are dropped.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
        self.instructions.clear();
        self.used = 0;
    }

    /// Does that, and gives their memory back.
    pub(crate) fn give_back(&mut self) {
        *self = Stubs::new();
    }

    /// Handler and details of an instruction without address, if [`Stubs::remember`] was told.
    pub(super) fn met_before(&self, bare: &Instruction) -> Option<&(Handler, Rc<Detail>)> {
        self.instructions.get(bare)
    }

    /// Notes handler and details of an instruction without address.
    pub(super) fn remember(&mut self, bare: Instruction, run: Handler, detail: Rc<Detail>) {
        // Immediates make many of one.
        if self.instructions.len() >= INSTRUCTIONS_MAX {
            self.instructions.clear();
        }
        self.instructions.insert(bare, (run, detail));
    }

    /// Makes `code` callable, or returns the function with these bytes that is there already. The code
    /// must not depend on its place.
    ///
    /// # Errors
    /// When the arena is full or the host refuses memory for it.
    pub(super) fn install(&mut self, code: &[u8]) -> std::io::Result<Entry> {
        if let Some(entry) = self.known.get(code) {
            return Ok(*entry);
        }
        if self.used + code.len() > ARENA_LEN {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let arena = match &mut self.arena {
            Some(arena) => arena,
            none => none.insert(Arena::new()?),
        };
        // SAFETY: `[used, used + len)` lies in both mappings, and nothing executes there: the part beyond
        // `used` was never handed out since the last `clear`.
        let entry = unsafe {
            arena.writable.add(self.used).copy_from_nonoverlapping(NonNull::from(code).cast(), code.len());
            std::mem::transmute::<*mut u8, Entry>(arena.executable.add(self.used).as_ptr())
        };
        self.used = (self.used + code.len()).next_multiple_of(FUNCTION_ALIGN);
        self.known.insert(code.into(), entry);
        Ok(entry)
    }
}

impl Arena {
    fn new() -> std::io::Result<Arena> {
        let fd = memfd()?;
        let map = |protection| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), ARENA_LEN, protection, libc::MAP_SHARED, fd, 0) };
            match at {
                libc::MAP_FAILED => Err(std::io::Error::last_os_error()),
                at => Ok(NonNull::new(at.cast::<u8>()).expect("mmap returns no null")),
            }
        };
        let mapped = map(libc::PROT_READ | libc::PROT_WRITE).and_then(|writable| {
            Ok((writable, map(libc::PROT_READ | libc::PROT_EXEC).inspect_err(|_| unmap(writable))?))
        });
        // SAFETY: `fd` was opened above and is used no more; the mappings stay.
        unsafe { libc::close(fd) };
        mapped.map(|(writable, executable)| Arena { writable, executable })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        unmap(self.writable);
        unmap(self.executable);
    }
}

fn unmap(at: NonNull<u8>) {
    // SAFETY: a mapping of this length made by `Arena::new`, to which no pointer is left.
    unsafe { libc::munmap(at.as_ptr().cast::<c_void>(), ARENA_LEN) };
}

/// An anonymous file of the arena's size.
fn memfd() -> std::io::Result<i32> {
    /// Says that it is to be executed; since Linux 6.3, and some systems insist on it.
    const MFD_EXEC: u32 = 0x10;
    let name = c"guest-code";
    // SAFETY: plain system calls; `name` outlives them.
    let fd = unsafe {
        match libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | MFD_EXEC) {
            -1 => libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC),
            fd => fd,
        }
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `fd` is open and ours.
    if unsafe { libc::ftruncate(fd, ARENA_LEN as libc::off_t) } != 0 {
        let error = std::io::Error::last_os_error();
        // SAFETY: as above.
        unsafe { libc::close(fd) };
        return Err(error);
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::Regs;

    #[test]
    fn code_runs_and_equal_code_exists_once() {
        let mut stubs = Stubs::new();
        // mov eax, imm32; ret
        let seven = stubs.install(&[0xb8, 7, 0, 0, 0, 0xc3]).unwrap();
        let eight = stubs.install(&[0xb8, 8, 0, 0, 0, 0xc3]).unwrap();
        let again = stubs.install(&[0xb8, 7, 0, 0, 0, 0xc3]).unwrap();
        assert_eq!(seven as usize, again as usize);
        let mut regs = Regs::new();
        // SAFETY: the functions only load EAX.
        let values =
            unsafe { (seven(&mut regs, std::ptr::null_mut()), eight(&mut regs, std::ptr::null_mut())) };
        assert_eq!(values, (7, 8));
    }

    #[test]
    fn a_full_arena_is_reusable_after_clearing() {
        let mut stubs = Stubs::new();
        let mut count = 0u32;
        while !stubs.is_full() {
            let mut code = vec![0xb8];
            code.extend(count.to_le_bytes());
            code.extend([0xc3; 4000]);
            stubs.install(&code).unwrap();
            count += 1;
        }
        assert!(count > 1000);
        stubs.clear();
        assert!(!stubs.is_full());
        let entry = stubs.install(&[0xb8, 9, 0, 0, 0, 0xc3]).unwrap();
        // SAFETY: the function only loads EAX.
        assert_eq!(unsafe { entry(&mut Regs::new(), std::ptr::null_mut()) }, 9);
    }
}
