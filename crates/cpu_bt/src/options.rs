//! How the engine is to work.

use crate::event_trace::Trace;
use std::sync::Arc;

/// How the engine is to work.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether hot code is translated.
    pub jit: Jit,
    /// Most memory for translated code, in bytes.
    pub code_cache_size_max: usize,
    /// How often a block is interpreted before its trace is translated.
    pub hot: u32,
    /// Whether translated code keeps status flags that are overwritten before the guest can read them, so
    /// that they are right in the frames of faults and interrupts too. Costs speed.
    pub exact_flags: bool,
    /// What is made harder than it has to be.
    pub stress: Stress,
    /// Where to tell what is decoded, translated and left.
    pub trace: Option<Arc<Trace>>,
}

/// Whether hot code is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jit {
    /// Yes.
    #[default]
    On,
    /// Everything is interpreted.
    Off,
    /// Each trace executes translated and interpreted, on the same state. At the first difference the
    /// vCPU fails with a report. One vCPU executes at a time.
    Lockstep,
}

/// Forced modes, for tests: what happens seldom happens all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stress {
    /// The software TLB keeps one page.
    pub one_tlb_entry: bool,
    /// A move to CR3 forgets all translations of addresses, global ones too, and all code addresses.
    pub flush_at_switch: bool,
}

/// Memory for translated code unless another size is asked for.
pub const CODE_CACHE_SIZE_DEFAULT: usize = 128 << 20;
/// The least memory for translated code: a smaller wish is raised to it.
pub const CODE_CACHE_SIZE_MIN: usize = crate::jit::cache::SIZE_MIN;

impl Default for Options {
    fn default() -> Options {
        Options {
            jit: Jit::On,
            code_cache_size_max: CODE_CACHE_SIZE_DEFAULT,
            hot: crate::jit::HOT,
            exact_flags: false,
            stress: Stress::default(),
            trace: None,
        }
    }
}
