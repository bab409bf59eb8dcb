//! Real guests under the real worker. `cargo xtask test` provides what they need; without it every
//! test here is reported as skipped.

mod agent;
mod busybox;
mod cgroups;
mod cloud_init;
mod completion;
mod contexts;
mod copies;
mod crash;
mod daemon;
mod debian;
mod discs;
mod disks;
mod engines;
mod firmware;
mod forced;
mod inside;
mod killed;
mod loaders;
mod mounts;
mod moving;
mod networks;
mod product;
mod refusals;
mod root_files;
mod service;
mod snapshots;
mod software;
mod stopping;
mod terminal;
mod workloads;

use std::process::ExitCode;

use anyhow::Result;
use vm_test::Suite;

fn main() -> Result<ExitCode> {
    let mut suite = Suite::from_env()?;
    refusals::add(&mut suite);
    terminal::add(&mut suite);
    stopping::add(&mut suite);
    busybox::add(&mut suite);
    forced::add(&mut suite);
    snapshots::add(&mut suite);
    copies::add(&mut suite);
    engines::add(&mut suite);
    workloads::add(&mut suite);
    software::add(&mut suite);
    daemon::add(&mut suite);
    product::add(&mut suite);
    completion::add(&mut suite);
    contexts::add(&mut suite);
    inside::add(&mut suite);
    cgroups::add(&mut suite);
    service::add(&mut suite);
    killed::add(&mut suite);
    moving::add(&mut suite);
    networks::add(&mut suite);
    mounts::add(&mut suite);
    cloud_init::add(&mut suite);
    root_files::add(&mut suite);
    loaders::add(&mut suite);
    debian::add(&mut suite);
    firmware::add(&mut suite);
    discs::add(&mut suite);
    crash::add(&mut suite);
    disks::add(&mut suite);
    agent::add(&mut suite);
    Ok(suite.run())
}
