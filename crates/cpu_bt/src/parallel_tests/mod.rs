//! Several vCPUs on threads of their own: memory ordering, locked operations, code that changes while
//! others execute it, interrupts between any two instructions. Each with ordinary options and with every
//! forced mode.

mod accesses;
mod changing_code;
mod interrupts;
mod litmus;
mod returns;
mod smp;
