//! The software CPU engine: runs x86-64 guests without hardware virtualization.
