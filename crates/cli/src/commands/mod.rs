//! The commands, one file each.

mod appliance;
mod audit;
mod completions;
mod console;
mod context;
mod cp;
mod create;
mod daemon;
mod disk;
mod doctor;
mod exec;
mod file_server;
mod image;
mod info;
mod lab;
mod lifecycle;
mod limits;
mod logs;
mod ls;
mod machine;
mod man;
mod mount;
mod network;
mod operation;
mod pool;
mod port;
mod project;
mod rename;
mod resize;
mod rm;
mod run;
mod screen;
mod set;
mod shell;
mod snapshot;
mod switch;
mod token;
mod top;
mod user;
mod version;
mod volume;

use crate::{Context, Error};
use std::process::ExitCode;

/// What a command does.
pub trait Run {
    /// Carries it out. The exit status is the guest's where one is run in a guest, else success.
    ///
    /// # Errors
    /// When it could not be done.
    fn run(&self, context: &Context) -> Result<ExitCode, Error>;
}

/// Removes what has these names, one after the other, and says so. The first that cannot be removed ends it.
async fn remove_each(
    context: &Context,
    names: &[String],
    remove: impl AsyncFn(&str) -> Result<(), client::Error>,
) -> Result<(), Error> {
    for name in names {
        remove(name).await?;
        context.output.say(&format!("{name} is removed"))?;
    }
    Ok(())
}

/// All commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create a virtual machine and start it
    Run(run::RunVm),
    /// Create a virtual machine
    Create(create::Create),
    /// List virtual machines
    #[command(alias = "list")]
    Ls(ls::Ls),
    /// Show a virtual machine, or the host
    Info(info::Info),
    /// Start virtual machines
    Start(lifecycle::Start),
    /// Stop virtual machines
    Stop(lifecycle::Stop),
    /// Stop virtual machines and start them again
    Restart(lifecycle::Restart),
    /// Make virtual machines stand still
    Pause(lifecycle::Pause),
    /// Let paused or suspended virtual machines go on
    Resume(lifecycle::Resume),
    /// Save virtual machines to the host's disk and end them; `resume` lets them go on
    Suspend(lifecycle::Suspend),
    /// Snapshots: virtual machines at one moment
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// List the snapshots of a virtual machine
    Snapshots(snapshot::Snapshots),
    /// Let a virtual machine go on from a snapshot
    Restore(snapshot::Restore),
    /// Make copies of a virtual machine
    Clone(snapshot::Clone),
    /// Remove virtual machines
    Rm(rm::Rm),
    /// Give a virtual machine another name
    Rename(rename::Rename),
    /// Change the configuration of a virtual machine
    Set(set::Set),
    /// Give a virtual machine other sizes
    Resize(resize::Resize),
    /// Run a program in a virtual machine
    Exec(exec::Exec),
    /// Open a shell in a virtual machine
    Shell(shell::Shell),
    /// Copy files and folders into a virtual machine, or out of it
    Cp(cp::Cp),
    /// Show a folder of the host in a virtual machine
    Mount(mount::Mount),
    /// Show folders in a virtual machine no more
    Umount(mount::Umount),
    /// Take a picture of a virtual machine's screen
    Screenshot(screen::Screenshot),
    /// Press keys of a virtual machine's keyboard
    Key(screen::Key),
    /// Ports of this host that lead into virtual machines
    #[command(subcommand)]
    Port(port::Port),
    /// Networks that machines have in common
    #[command(subcommand, visible_alias = "net")]
    Network(network::Network),
    /// Connect to the serial console of a virtual machine
    Console(console::Console),
    /// Show what a virtual machine wrote to its serial console
    Logs(logs::Logs),
    /// Show what virtual machines use
    Top(top::Top),
    /// Volumes: disks for virtual machines
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Pools: where volumes lie
    #[command(subcommand)]
    Pool(pool::Pool),
    /// Work with disk images
    Disk(disk::Disk),
    /// Build, import, move and keep images: what virtual machines come from
    Image(image::Image),
    /// Make a project what a file says
    Apply(lab::Apply),
    /// Show what `arnia apply` would do
    Diff(lab::Diff),
    /// Write machines, networks and volumes as a file for `arnia apply`
    Export(lab::Export),
    /// Show who changed what, or was refused to
    Audit(audit::Audit),
    /// Look at this host: what works, how fast, what to do about what does not
    Doctor(doctor::Doctor),
    /// Operations: work that goes on in the daemon
    #[command(subcommand)]
    Operation(operation::Operation),
    /// Projects: who sees what, and how much there may be
    #[command(subcommand)]
    Project(project::Project),
    /// Users and their roles
    #[command(subcommand)]
    User(user::User),
    /// Tokens: by which users and programs log in
    #[command(subcommand)]
    Token(token::Token),
    /// Contexts: daemons of other hosts
    #[command(subcommand)]
    Context(context::Context),
    /// Run the daemon
    Daemon(daemon::Daemon),
    /// Run the switch of a network, as the daemon does
    #[command(hide = true)]
    Switch(switch::RunSwitch),
    /// Show a guest a folder, as the daemon has it done
    #[command(hide = true, name = "file-server")]
    FileServer(file_server::RunFileServer),
    /// Write the completions for a shell
    Completions(completions::Completions),
    /// Write the manual pages
    Man(man::Man),
    /// Tell the version
    Version(version::Version),
}

impl Command {
    /// Carries out the command.
    ///
    /// # Errors
    /// When it could not be done.
    pub fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let command: &dyn Run = match self {
            Command::Run(command) => command,
            Command::Create(command) => command,
            Command::Ls(command) => command,
            Command::Info(command) => command,
            Command::Start(command) => command,
            Command::Stop(command) => command,
            Command::Restart(command) => command,
            Command::Pause(command) => command,
            Command::Resume(command) => command,
            Command::Suspend(command) => command,
            Command::Snapshot(command) => command,
            Command::Snapshots(command) => command,
            Command::Restore(command) => command,
            Command::Clone(command) => command,
            Command::Rm(command) => command,
            Command::Rename(command) => command,
            Command::Set(command) => command,
            Command::Resize(command) => command,
            Command::Exec(command) => command,
            Command::Shell(command) => command,
            Command::Cp(command) => command,
            Command::Mount(command) => command,
            Command::Umount(command) => command,
            Command::Screenshot(command) => command,
            Command::Key(command) => command,
            Command::Port(command) => command,
            Command::Network(command) => command,
            Command::Console(command) => command,
            Command::Logs(command) => command,
            Command::Top(command) => command,
            Command::Volume(command) => command,
            Command::Pool(command) => command,
            Command::Disk(command) => command,
            Command::Image(command) => command,
            Command::Apply(command) => command,
            Command::Diff(command) => command,
            Command::Export(command) => command,
            Command::Audit(command) => command,
            Command::Doctor(command) => command,
            Command::Operation(command) => command,
            Command::Project(command) => command,
            Command::User(command) => command,
            Command::Token(command) => command,
            Command::Context(command) => command,
            Command::Daemon(command) => command,
            Command::Switch(command) => command,
            Command::FileServer(command) => command,
            Command::Completions(command) => command,
            Command::Man(command) => command,
            Command::Version(command) => command,
        };
        command.run(context)
    }
}

/// Seconds as people read them.
fn duration(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Seconds since a time.
fn since(time: api::v1::Time) -> i64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    (now - time).max(0)
}

/// Bytes as people read them.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{value:.1}{}", UNITS[unit]),
    }
}
