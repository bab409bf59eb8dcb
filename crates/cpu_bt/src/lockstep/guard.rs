//! The guard: notes what is written to RAM, so that it can be compared and undone, and stops execution
//! before anything that cannot be undone.

use crate::cpu::Cpu;
use crate::fault::Result;
use crate::options::Jit;
use crate::regs::Regs;
use crate::signals::signal;
use std::collections::BTreeMap;

/// Writes after which a loop is made to end.
const WRITES_MAX: usize = 4096;

/// State of the guard. Does nothing unless it is active.
#[derive(Default)]
pub(crate) struct Guard {
    active: bool,
    /// Something was met that cannot be undone; it was not done.
    blocked: bool,
    log: Vec<Entry>,
}

/// Bytes that are about to be written.
struct Entry {
    ptr: *mut u8,
    gpa: u64,
    old: Vec<u8>,
}

/// Bytes that an execution wrote, by physical address: before and after.
pub(super) type Written = BTreeMap<u64, (u8, u8)>;

/// The state before an instruction.
pub(crate) struct Mark {
    regs: Box<Regs>,
    log: usize,
}

impl Guard {
    pub(super) fn begin(&mut self) {
        self.log.clear();
        (self.active, self.blocked) = (true, false);
    }

    pub(super) fn end(&mut self) {
        self.log.clear();
        (self.active, self.blocked) = (false, false);
    }

    /// Whether writes are noted.
    #[inline(always)]
    pub(crate) fn active(&self) -> bool {
        self.active
    }

    /// Whether something was met that must not be done now.
    pub(super) fn blocked(&self) -> bool {
        self.blocked
    }

    /// Asks before something that cannot be undone: true when it must not be done.
    #[inline(always)]
    pub(crate) fn blocks(&mut self) -> bool {
        self.blocked |= self.active;
        self.active
    }

    /// What was written, and what is there now.
    pub(super) fn written(&self) -> Written {
        let mut written = Written::new();
        for entry in &self.log {
            for (offset, old) in entry.old.iter().enumerate() {
                // SAFETY: bytes of RAM, which stays mapped while the machine lives.
                let new = unsafe { entry.ptr.add(offset).read_volatile() };
                // The first entry knows what was there before all of them.
                written.entry(entry.gpa + offset as u64).or_insert((*old, new));
            }
        }
        written
    }

    /// Whether what is written now is what another execution had written.
    pub(super) fn same_bytes(&self, other: &Written) -> bool {
        let changed = |written: &Written| -> Vec<(u64, u8)> {
            let all = written.iter().filter(|(_, (old, new))| old != new);
            all.map(|(at, (_, new))| (*at, *new)).collect()
        };
        changed(&self.written()) == changed(other)
    }

    /// Puts back what was written since the log had `len` entries.
    pub(super) fn undo_to(&mut self, len: usize) {
        for entry in self.log.drain(len..).rev() {
            // SAFETY: as in `written`.
            unsafe { std::ptr::copy(entry.old.as_ptr(), entry.ptr, entry.old.len()) };
        }
    }
}

impl Cpu {
    /// Notes bytes that are about to be written, if the guard is active.
    #[inline(always)]
    pub(crate) fn note_write(&mut self, ptr: *mut u8, gpa: u64, len: usize) {
        if self.guard.active {
            self.note_guarded(ptr, gpa, len);
        }
    }

    #[cold]
    fn note_guarded(&mut self, ptr: *mut u8, gpa: u64, len: usize) {
        let mut old = vec![0; len];
        // SAFETY: the caller is about to write these bytes of RAM.
        unsafe { std::ptr::copy(ptr, old.as_mut_ptr(), len) };
        self.guard.log.push(Entry { ptr, gpa, old });
        if self.guard.log.len() > WRITES_MAX {
            // A loop looks for requests at each turn.
            self.signals.raise(signal::TURN);
        }
    }

    /// [`Cpu::host_for_write`] in lock-step: what is about to be written is noted.
    #[cold]
    pub(crate) fn noted_for_write(&mut self, linear: u64, len: usize) -> Result<Option<*mut u8>> {
        Ok(match self.locked(linear, len)? {
            Some((ptr, gpa)) if !self.ram.write_needs_report(gpa) => Some(ptr),
            _ => None,
        })
    }

    /// The state before an instruction that may have to be undone.
    #[inline(always)]
    pub(crate) fn guard_mark(&mut self) -> Option<Mark> {
        let lockstep = self.vm.options.jit == Jit::Lockstep && self.guard.active;
        lockstep.then(|| Mark { regs: Box::new(self.regs.clone()), log: self.guard.log.len() })
    }

    /// Undoes an instruction that met what cannot be undone; true if it did.
    #[inline(always)]
    pub(crate) fn guard_undo(&mut self, mark: Option<Mark>) -> bool {
        match mark {
            Some(mark) if self.guard.blocked => {
                self.guard.undo_to(mark.log);
                self.regs = *mark.regs;
                self.code_modified = false;
                true
            }
            _ => false,
        }
    }
}
