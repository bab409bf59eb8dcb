//! `arnia-vmm`: runs one virtual machine.

fn main() -> std::process::ExitCode {
    vmm::program::main()
}
