//! CPUID models: what a guest's processor says of itself, identical under every engine.

use serde::{Deserialize, Serialize};

/// One CPUID leaf as a guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input; `None` when the leaf ignores it.
    pub index: Option<u32>,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Width of guest-physical addresses in bits, in every model.
pub const PHYS_BITS: u32 = 46;
