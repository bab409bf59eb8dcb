//! All automation of the project. `main.rs` is the list of tasks; each task is one `task_*.rs`.

mod apt;
mod guests;
mod host;
mod kvm_rig;
mod layers;
mod pypi;
mod schemathesis;
mod steps;
mod task_bench;
mod task_build;
mod task_check;
mod task_ci;
mod task_demo;
mod task_docs;
mod task_fuzz;
mod task_guests;
mod task_openapi;
mod task_record;
mod task_test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests, measures and shows Arnia.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the programs, with the guest agent that goes into images
    Build(task_build::Args),
    /// Check formatting, lints and the layering of the crates
    Check(task_check::Args),
    /// Run the unit tests and the boot tests
    Test(task_test::Args),
    /// Run the fuzzers, a bounded time each
    Fuzz(task_fuzz::Args),
    /// Do what continuous integration does: install what is missing, check, test
    Ci(task_ci::Args),
    /// Boot a Debian guest and leave you at its login prompt
    Demo(task_demo::Args),
    /// Measure, against Debian's QEMU without hardware help, and save the results
    Bench(task_bench::Args),
    /// Write the reference of the command line (docs/reference/cli)
    Docs(task_docs::Args),
    /// Write the description of the REST API, openapi/v1.json
    Openapi(task_openapi::Args),
    /// Record the terminal sessions that README shows (docs/recordings)
    Record(task_record::Args),
    /// Build the guest kernel, initramfs and Debian disk that tests and demo boot
    Guests(task_guests::Args),
}

fn main() -> ExitCode {
    let result: Result<ExitCode> = match Cli::parse().task {
        Task::Build(args) => task_build::run(&args),
        Task::Check(args) => task_check::run(&args),
        Task::Test(args) => task_test::run(&args),
        Task::Fuzz(args) => task_fuzz::run(&args),
        Task::Ci(args) => task_ci::run(&args),
        Task::Demo(args) => task_demo::run(&args),
        Task::Bench(args) => task_bench::run(&args),
        Task::Docs(args) => task_docs::run(&args),
        Task::Openapi(args) => task_openapi::run(&args),
        Task::Record(args) => task_record::run(&args),
        Task::Guests(args) => task_guests::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
