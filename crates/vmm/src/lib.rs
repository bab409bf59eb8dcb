//! Builds and runs one virtual machine; the program arnia-vmm.
