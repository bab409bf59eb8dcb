//! Starting a program.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use api::agent::{AgentError, AgentErrorKind, ExecParams, Exit, WindowSize};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setsid, setuid};

use crate::Root;
use crate::failure::{failed, invalid};
use crate::users::User;

nix::ioctl_write_ptr_bad!(set_window_size, nix::libc::TIOCSWINSZ, Winsize);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TERM: &str = "xterm-256color";

/// A program that runs, or has ended and has not been reaped.
pub(crate) struct Child {
    pid: Pid,
    reaped: bool,
    /// The terminal's other end, if it has one.
    terminal: Option<File>,
    /// Becomes readable when the program has ended.
    pub(crate) ended: io::PipeReader,
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
}

impl Child {
    /// Starts the program as its user.
    pub(crate) fn start(params: &ExecParams) -> Result<Child, AgentError> {
        let root = Root::live();
        let wanted = params.user.as_deref().unwrap_or("root");
        let user = User::find(&root, wanted).ok_or_else(|| {
            AgentError::new(AgentErrorKind::NotFound, format!("the guest has no user {wanted:?}"))
        })?;
        let mut command = command(params, &user)?;
        let what = params.command.first().unwrap_or(&user.shell).clone();
        let terminal = match params.terminal {
            Some(size) => {
                Some(open_terminal(size).map_err(|error| failed("cannot make a terminal", &error))?)
            }
            None => None,
        };
        match &terminal {
            Some((_, slave)) => {
                attach(&mut command, slave).map_err(|error| failed("cannot make a terminal", &error))?
            }
            None => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        become_user(&mut command, &root, &user, terminal.is_some());
        let mut started = command.spawn().map_err(|error| match &params.directory {
            // The error for a missing folder is that for a missing program.
            Some(folder) if !Path::new(folder).is_dir() => failed(format!("cannot work in {folder}"), &error),
            _ => failed(format!("cannot run {what}"), &error),
        })?;
        let pid = Pid::from_raw(started.id().cast_signed());
        let (stdin, stdout, stderr) = (started.stdin.take(), started.stdout.take(), started.stderr.take());
        // Before anything can fail: from here on dropping it ends the program.
        let (ended, tell) = io::pipe().map_err(|error| failed(format!("cannot run {what}"), &error))?;
        let mut child = Child {
            pid,
            reaped: false,
            terminal: None,
            ended,
            stdin: stdin.map(|stdin| File::from(OwnedFd::from(stdin))),
            stdout: stdout.map(|stdout| File::from(OwnedFd::from(stdout))),
            stderr: stderr.map(|stderr| File::from(OwnedFd::from(stderr))),
        };
        child
            .prepare(terminal.map(|(master, _)| master), tell)
            .map_err(|error| failed(format!("cannot run {what}"), &error))?;
        Ok(child)
    }

    fn prepare(&mut self, master: Option<File>, tell: io::PipeWriter) -> io::Result<()> {
        if let Some(master) = master {
            self.stdin = Some(master.try_clone()?);
            self.stdout = Some(master.try_clone()?);
            self.terminal = Some(master);
        }
        for file in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            let flags = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL)?);
            fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        let pid = self.pid;
        // Waits without reaping, so that the number stays the program's for whoever sends signals.
        thread::Builder::new().name("wait".into()).spawn(move || {
            while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
            drop(tell);
        })?;
        Ok(())
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Gives the terminal, if there is one, another size.
    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            // SAFETY: the descriptor is open and the structure is the one that the request takes.
            let _ = unsafe { set_window_size(terminal.as_raw_fd(), &winsize(size)) };
        }
    }

    /// Sends the program and its group a signal. One that does not exist, or comes too late, does nothing.
    pub(crate) fn signal(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            let _ = kill(Pid::from_raw(-self.pid.as_raw()), signal);
        }
    }

    /// Reaps the program after [`Child::ended`] has become readable.
    pub(crate) fn reap(mut self) -> io::Result<Exit> {
        // Returns at once: the pipe is closed after the program's end.
        let _ = self.ended.read(&mut [0]);
        self.reaped = true;
        loop {
            return match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, status)) => Ok(Exit::Status(status)),
                Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Exit::Signal(signal as i32)),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// The host is gone: the program hears of it as of a modem's hang-up.
impl Drop for Child {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        self.signal(Signal::SIGHUP as i32);
        self.signal(Signal::SIGCONT as i32);
        // If it ignores that, as programs under nohup do, it goes on; somebody has to reap it then.
        let pid = self.pid;
        let reaper = thread::Builder::new()
            .name("reap".into())
            .spawn(move || while waitpid(pid, None) == Err(Errno::EINTR) {});
        drop(reaper);
    }
}

fn command(params: &ExecParams, user: &User) -> Result<Command, AgentError> {
    let texts = params.command.iter().chain(params.environment.values()).chain(&params.directory);
    if texts.chain(params.environment.keys()).any(|text| text.contains('\0')) {
        return Err(invalid("arguments and variables must not contain a zero byte"));
    }
    if params.environment.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err(invalid("a variable's name must not be empty and must not contain `=`"));
    }
    let mut command = match params.command.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        None => {
            let mut command = Command::new(&user.shell);
            // By a hyphen before its name a shell knows that somebody logs in.
            let name = user.shell.rsplit('/').next().unwrap_or_default();
            command.arg0(format!("-{name}"));
            command
        }
    };
    command.env_clear();
    command.env("PATH", PATH).env("HOME", &user.home).env("SHELL", &user.shell);
    command.env("USER", &user.name).env("LOGNAME", &user.name);
    if params.terminal.is_some() {
        command.env("TERM", TERM);
    }
    command.envs(&params.environment);
    let home = if user.home.is_dir() { user.home.as_path() } else { Path::new("/") };
    command.current_dir(params.directory.as_deref().map_or(home, Path::new));
    Ok(command)
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn open_terminal(size: WindowSize) -> io::Result<(File, OwnedFd)> {
    let pty = openpty(Some(&winsize(size)), None)?;
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    Ok((File::from(pty.master), pty.slave))
}

fn attach(command: &mut Command, slave: &OwnedFd) -> io::Result<()> {
    let end = || slave.as_fd().try_clone_to_owned();
    command.stdin(Stdio::from(end()?)).stdout(Stdio::from(end()?)).stderr(Stdio::from(end()?));
    Ok(())
}

/// In the new process: a session of its own, the terminal if there is one, and the user's rights.
fn become_user(command: &mut Command, root: &Root, user: &User, terminal: bool) {
    let groups: Vec<Gid> = user.groups(root).into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let change_user = Uid::effective() != uid || uid.is_root() && Uid::effective().is_root();
    let prepare = move || {
        setsid()?;
        // What the agent's own starter ignored stays ignored over exec, and shells cannot trap it then. The
        // two that cannot be changed refuse, which does no harm.
        for signal in 1..=nix::libc::SIGSYS {
            // SAFETY: the default action is no code of ours.
            unsafe { nix::libc::signal(signal, nix::libc::SIG_DFL) };
        }
        if terminal {
            // SAFETY: standard input is the terminal, and the request takes a number.
            Errno::result(unsafe { nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) })?;
        }
        if change_user {
            setgroups(&groups)?;
            setgid(gid)?;
            setuid(uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls and nothing else: no memory, no locks.
    unsafe { command.pre_exec(prepare) };
}
