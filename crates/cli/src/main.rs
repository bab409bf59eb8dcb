//! `arnia`: virtual machines from the command line.

fn main() -> std::process::ExitCode {
    cli::main()
}
