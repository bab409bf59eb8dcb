//! Whose turn it is to execute, in lock-step: one vCPU's at a time.

use crate::cpu::Cpu;
use crate::options::Jit;
use crate::signals::{Signals, signal};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::Duration;

const NOBODY: u32 = u32::MAX;
/// After this long a loop in translated code is made to end, so that it can be compared.
const LOOP_MAX: Duration = Duration::from_micros(500);

/// Whose turn it is.
pub(crate) struct Turns {
    turn: Mutex<()>,
    holder: Arc<AtomicU32>,
}

/// One vCPU's turn. It ends when this is dropped.
pub(crate) struct Turn<'a> {
    holder: &'a AtomicU32,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.holder.store(NOBODY, Ordering::Relaxed);
    }
}

impl Turns {
    /// Creates it; in lock-step with a thread that ends long loops.
    pub(crate) fn new(jit: Jit, signals: &[Arc<Signals>]) -> Turns {
        let holder = Arc::new(AtomicU32::new(NOBODY));
        if jit == Jit::Lockstep {
            let signals: Vec<Weak<Signals>> = signals.iter().map(Arc::downgrade).collect();
            let holder = holder.clone();
            let ends_loops = move || {
                while signals.iter().any(|signals| signals.strong_count() > 0) {
                    std::thread::sleep(LOOP_MAX);
                    let held = signals.get(holder.load(Ordering::Relaxed) as usize);
                    if let Some(signals) = held.and_then(Weak::upgrade) {
                        signals.raise(signal::TURN);
                    }
                }
            };
            // Without it loops are compared when something else ends them.
            let _ = std::thread::Builder::new().name("lockstep".into()).spawn(ends_loops);
        }
        Turns { turn: Mutex::new(()), holder }
    }

    /// Waits for this vCPU's turn; `None` when something else is to be seen to first.
    pub(crate) fn take(&self, cpu: &mut Cpu) -> Option<Turn<'_>> {
        loop {
            let turn = match self.turn.try_lock() {
                Ok(turn) => turn,
                // A panic during another's turn has ended that vCPU only.
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    // The one whose turn it is may be waiting for this one.
                    cpu.heed_requests();
                    if cpu.signals.pending() & signal::KICK != 0 {
                        return None;
                    }
                    std::thread::yield_now();
                    continue;
                }
            };
            self.holder.store(cpu.id, Ordering::Relaxed);
            return Some(Turn { holder: &self.holder, _turn: turn });
        }
    }
}
