//! What needs the harness but is no test: the scripted demo and the benchmarks. `cargo xtask`
//! starts it with the environment that it needs.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};
use vm_test::bench;
use vm_test::{Artifacts, Engine, Guest, Patience, Program, copy_sparse, debian};

/// Scripted demo and benchmarks; started by `cargo xtask demo --check` and `cargo xtask bench`.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Log in to the Debian guest, run commands, download something and shut down
    DemoCheck,
    /// Mixed stress in a guest, compared with the host, for so many seconds
    Soak {
        /// How long
        seconds: u64,
    },
    /// Measure, and save what came out
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::DemoCheck => demo_check(),
        Command::Bench(options) => bench::run(&options),
        Command::Soak { seconds } => {
            let folder = std::env::var_os("ARNIA_TEST_OUTPUT").map_or_else(std::env::temp_dir, Into::into);
            vm_test::soak::run(std::time::Duration::from_secs(seconds), &folder.join("soak"))
                .map(|verdict| println!("{verdict}"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The demo by script. Says what it does, and ends with an error at the first thing that fails.
fn demo_check() -> Result<()> {
    const CPUS: u32 = 2;
    let started = Instant::now();
    let mut told = |what: &str| println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    let artifacts = Artifacts::from_env()?;
    let folder = std::env::temp_dir().join(format!("arnia-demo-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let disk = folder.join("disk.img");
    copy_sparse(&artifacts.debian.disk, &disk)?;

    told(&format!("starting Debian with {CPUS} CPUs; console and messages are in {}", folder.display()));
    let guest = Guest::debian(&artifacts, &disk).cpus(CPUS).network();
    let mut vm = guest.start(&Program::Worker(Engine::Bt), &folder)?;
    let mut shell = debian::log_in(&mut vm, &artifacts)?;
    told("logged in");
    debian::try_commands(&mut shell, &artifacts, CPUS, &mut told)?;
    debian::try_download(&mut shell, &mut told)?;
    shell.send("poweroff")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    told("shut down; the demo works");
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
