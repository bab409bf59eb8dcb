//! The engine contract: Engine, Vm, Vcpu, the exits they make and the interrupts they take.
