//! From linear addresses to host memory: software TLB, page-table walks, accesses.

pub(crate) mod access;
pub(crate) mod guess;
pub(crate) mod pages;
pub(crate) mod spaces;
pub(crate) mod tlb;
pub(crate) mod walk;
