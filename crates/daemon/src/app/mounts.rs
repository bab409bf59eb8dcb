//! Folders of the host that guests see, changed while they run.
//!
//! A mount has three parts, made in this order and taken away in the other: a file server on the host (`shares`), the
//! share in the machine's device, and the mount in the guest, which its agent makes.

use super::shares::share_id;
use super::{App, Caller, Machine, lock};
use crate::Error;
use crate::guest::printable;
use api::agent::shares::ShareReport;
use api::v1::error::ErrorCode;
use api::v1::mount::{MOUNTS_MAX, Mount, MountConfig, MountState};
use api::v1::vm::VmConfig;
use api::worker::control::Request;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;
use store::VmRecord;

/// How long a guest that is just coming up is waited for.
const GUEST_PATIENCE: Duration = Duration::from_secs(10);
/// Longest path of a guest.
const TARGET_LEN_MAX: usize = 1024;
const NAME_LEN_MAX: usize = 128;
/// How much is kept of a guest's reason, in characters.
const ERROR_LEN_MAX: usize = 256;

/// What guests have said of their mounts, by name: nothing, or why not.
pub(super) type Known = std::collections::HashMap<String, Option<String>>;

impl App {
    /// The folders that a machine is shown.
    pub(crate) fn mount_list(&self, vm: &VmRecord) -> Vec<Mount> {
        let machine = self.machine(&vm.id);
        vm.config.mounts.iter().map(|mount| view(&machine, mount)).collect()
    }

    /// Shows a guest a folder: of the machine's configuration, and at once if it runs.
    pub(crate) async fn mount_add(
        self: &Arc<App>,
        caller: &Caller,
        vm: &VmRecord,
        mount: MountConfig,
    ) -> Result<Mount, Error> {
        let _lifecycle = self.lifecycle_locked(vm).await?;
        let mut vm = self.read(|records| Ok(records.vm_by_id(&vm.id)?))?;
        let before = vm.config.clone();
        vm.config.mounts.push(mount);
        check(caller, Some(&before), &vm.config)?;
        complete(&mut vm.config);
        let mount = vm.config.mounts.last().cloned().unwrap_or_default();
        if before.mounts.iter().any(|other| share_id(other) == share_id(&mount)) {
            let message = format!("{:?} cannot be told apart from another mount", mount.target);
            return Err(Error::new(ErrorCode::Invalid, message).with_remedy("choose another name"));
        }
        let machine = self.machine(&vm.id);
        if machine.process().is_none() {
            self.write_config(&vm)?;
            return Ok(view(&machine, &mount));
        }
        let shown = self.show(&machine, &vm, &mount).await;
        let written = shown.and_then(|()| self.write_config(&vm));
        if let Err(error) = written {
            self.hide(&machine, &vm, &mount).await;
            return Err(error);
        }
        Ok(view(&machine, &mount))
    }

    /// Server, share, and the mount in the guest. A guest that has no agent to answer has the share all the same.
    async fn show(
        self: &Arc<App>,
        machine: &Arc<Machine>,
        vm: &VmRecord,
        mount: &MountConfig,
    ) -> Result<(), Error> {
        let share = self.serve_share(vm, mount).await?;
        let name = share.name.clone();
        self.folder(&vm.id).control().ask(Request::ShareAdd { share }).await?;
        match self.ask_to_mount(machine, vm).await {
            Ok(()) => {}
            Err(error) if may_come(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        match lock(&machine.mounts).get(&name) {
            Some(Some(why)) => {
                let message = format!("the guest of {:?} cannot mount it at {}", vm.name, mount.target);
                Err(Error::new(ErrorCode::GuestFailed, message).with_cause(why))
            }
            _ => Ok(()),
        }
    }

    /// Undoes [`App::show`], as far as that came.
    async fn hide(&self, machine: &Machine, vm: &VmRecord, mount: &MountConfig) {
        let name = mount.name.clone().unwrap_or_default();
        let guest_name = name.clone();
        let asked = self.guest_ask(vm, move |agent| agent.unmount_share(&guest_name, true));
        let _ = tokio::time::timeout(GUEST_PATIENCE, asked).await;
        let _ = self.folder(&vm.id).control().ask(Request::ShareRemove { name: name.clone() }).await;
        self.end_share(&vm.id, mount);
        lock(&machine.mounts).remove(&name);
    }

    /// Shows a guest a folder no more: that which it has at `target`, or of this name. With `force` although somebody in
    /// the guest uses it.
    pub(crate) async fn mount_remove(
        self: &Arc<App>,
        vm: &VmRecord,
        target: &str,
        force: bool,
    ) -> Result<(), Error> {
        let _lifecycle = self.lifecycle_locked(vm).await?;
        let mut vm = self.read(|records| Ok(records.vm_by_id(&vm.id)?))?;
        let plain = target.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(target);
        let found = vm
            .config
            .mounts
            .iter()
            .position(|mount| mount.target == plain || mount.name.as_deref() == Some(target));
        let Some(index) = found else {
            let message = format!("the virtual machine {:?} has nothing mounted at {target:?}", vm.name);
            return Err(Error::new(ErrorCode::NotFound, message)
                .with_remedy(format!("see `arnia mount ls {}`", vm.name)));
        };
        let mount = vm.config.mounts.remove(index);
        let machine = self.machine(&vm.id);
        if machine.process().is_none() {
            return self.write_config(&vm);
        }
        let name = mount.name.clone().unwrap_or_default();
        let asked = self.guest_ask(&vm, move |agent| agent.unmount_share(&name, force));
        match tokio::time::timeout(GUEST_PATIENCE, asked).await {
            Ok(Err(error)) if !may_come(&error) && !force => {
                let message = format!("the guest of {:?} does not let {} go", vm.name, mount.target);
                return Err(Error::new(ErrorCode::InUse, message)
                    .with_cause(error)
                    .with_remedy("end what uses it, or take it away all the same with --force"));
            }
            // Without an agent nobody can say whether it is in use.
            _ => {}
        }
        self.write_config(&vm)?;
        let name = mount.name.clone().unwrap_or_default();
        let removed = self.folder(&vm.id).control().ask(Request::ShareRemove { name: name.clone() }).await;
        self.end_share(&vm.id, &mount);
        lock(&machine.mounts).remove(&name);
        match removed {
            // The worker may have been started without it.
            Err(error) if error.code() != ErrorCode::Invalid => Err(error),
            _ => Ok(()),
        }
    }

    /// Has the agent of a guest mount what its machine shows, and remembers what it says.
    async fn ask_to_mount(&self, machine: &Machine, vm: &VmRecord) -> Result<(), Error> {
        let asked = self.guest_ask(vm, |agent| agent.mount_shares());
        let reports = tokio::time::timeout(GUEST_PATIENCE, asked).await.map_err(|_| {
            Error::new(ErrorCode::GuestTimeout, format!("the guest of {:?} does not answer", vm.name))
        })??;
        *lock(&machine.mounts) = reports.into_iter().map(heard).collect();
        Ok(())
    }

    /// A guest's agent has appeared: it mounts what there is. `goes_on` says that the guest is one of a snapshot, and may
    /// have mounts of then.
    pub(super) async fn guest_mounts(&self, machine: &Machine, goes_on: bool) {
        let Ok(vm) = self.read(|records| Ok(records.vm_by_id(&machine.id)?)) else { return };
        if vm.config.mounts.is_empty() && !goes_on {
            return;
        }
        if let Err(error) = self.ask_to_mount(machine, &vm).await
            && !vm.config.mounts.is_empty()
        {
            log::warn!("the guest of {} has not mounted its folders: {error}", vm.name);
            let why = Some(error.to_string());
            let names = vm.config.mounts.iter().filter_map(|mount| mount.name.clone());
            *lock(&machine.mounts) = names.map(|name| (name, why.clone())).collect();
        }
    }
}

fn view(machine: &Machine, mount: &MountConfig) -> Mount {
    let known = lock(&machine.mounts).get(mount.name.as_deref().unwrap_or_default()).cloned();
    let (state, reason) = match (machine.process(), known) {
        (None, _) => (MountState::Off, None),
        (Some(_), None) => {
            let reason = "the guest's agent has not answered yet; by hand: mount -t virtiofs arnia /mnt";
            (MountState::Waiting, Some(reason.to_owned()))
        }
        (Some(_), Some(None)) => (MountState::Mounted, None),
        (Some(_), Some(Some(why))) => (MountState::Failed, Some(why)),
    };
    Mount { config: mount.clone(), state, reason }
}

/// Whether a guest that did not do what it was asked for may do it by and by: its agent is not up, or there is none.
fn may_come(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::GuestTimeout | ErrorCode::Unavailable | ErrorCode::WrongState)
}

/// Refuses mounts that cannot be, or that this caller may not ask for. Those that the machine has already may stay.
pub(super) fn check(caller: &Caller, before: Option<&VmConfig>, config: &VmConfig) -> Result<(), Error> {
    let invalid = |message: String| Error::new(ErrorCode::Invalid, message);
    let mounts = &config.mounts;
    if mounts.len() > MOUNTS_MAX {
        return Err(invalid(format!("a machine has at most {MOUNTS_MAX} folders of the host")));
    }
    for (index, mount) in mounts.iter().enumerate() {
        if before.is_some_and(|before| before.mounts.contains(mount)) {
            continue;
        }
        if !caller.is_admin() {
            return Err(Error::new(
                ErrorCode::Forbidden,
                "only admins may show folders of the host to guests",
            )
            .with_remedy("copy files with `arnia cp`, or ask an admin"));
        }
        if !is_target(&mount.target) {
            return Err(invalid(format!("{:?} is no place for a folder in a guest", mount.target))
                .with_remedy("write an absolute path without `.` and `..`, like /mnt/src"));
        }
        if mounts[..index].iter().any(|other| other.target == mount.target) {
            let message = format!("the machine has a folder at {} already", mount.target);
            return Err(Error::new(ErrorCode::AlreadyExists, message)
                .with_remedy("take that one away first: `arnia umount VM:PATH`"));
        }
        if mount.owner_ids().is_none() {
            let owner = mount.owner.as_deref().unwrap_or_default();
            return Err(
                invalid(format!("{owner:?} is no owner")).with_remedy("write UID or UID:GID, like 1000")
            );
        }
        if let Some(name) = &mount.name
            && (!is_name(name) || mounts[..index].iter().any(|other| other.name.as_ref() == Some(name)))
        {
            return Err(invalid(format!("{name:?} is no name for a mount, or is taken"))
                .with_remedy("leave the name out: one is chosen"));
        }
        let folder = Path::new(&mount.folder);
        if !folder.is_absolute() || mount.folder.contains('\0') {
            return Err(invalid(format!("{:?} is no absolute path", mount.folder)));
        }
        match folder.metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                return Err(invalid(format!("{folder:?} is no folder"))
                    .with_remedy("name the folder that the file is in"));
            }
            Err(e) => {
                return Err(invalid(format!("the folder {folder:?} cannot be used"))
                    .with_cause(e)
                    .with_remedy("check the path"));
            }
        }
    }
    Ok(())
}

/// What a guest says became of a mount: its name, and why it is not there, as it may be shown.
fn heard(report: ShareReport) -> (String, Option<String>) {
    let ShareReport { name, error } = report;
    (name, error.map(|error| printable(&error, ERROR_LEN_MAX)))
}

fn is_target(target: &str) -> bool {
    let path = Path::new(target);
    let plain: std::path::PathBuf = path.components().collect();
    target.len() <= TARGET_LEN_MAX
        && path.is_absolute()
        && target != "/"
        && plain.as_os_str() == target
        && !target.chars().any(char::is_control)
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Names the mounts that have no name: `/mnt/src` is `mnt-src`.
pub(super) fn complete(config: &mut VmConfig) {
    for index in 0..config.mounts.len() {
        if config.mounts[index].name.is_some() {
            continue;
        }
        let plain =
            |byte: char| if byte.is_ascii_alphanumeric() || "._-".contains(byte) { byte } else { '-' };
        let text: String = config.mounts[index].target.chars().map(plain).take(NAME_LEN_MAX - 8).collect();
        let text = text.trim_matches(['-', '.']);
        let text = if text.is_empty() { "folder" } else { text };
        let is_taken = |name: &str| config.mounts.iter().any(|other| other.name.as_deref() == Some(name));
        let names = std::iter::once(text.to_owned()).chain((2..).map(|number| format!("{text}-{number}")));
        let name = names.into_iter().find(|name| !is_taken(name));
        config.mounts[index].name = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str) -> MountConfig {
        MountConfig { folder: "/".into(), target: target.into(), ..MountConfig::default() }
    }

    #[test]
    fn a_guests_reason_is_bounded_and_harmless() {
        let error = Some("\x1b]0;owned\x07\n".repeat(100));
        let (name, error) = heard(ShareReport { name: "src".into(), error });
        let error = error.unwrap();
        assert_eq!((name.as_str(), error.chars().count()), ("src", ERROR_LEN_MAX));
        assert!(!error.chars().any(char::is_control), "{error:?}");
        assert_eq!(heard(ShareReport { name: "src".into(), error: None }).1, None);
    }

    #[test]
    fn targets_are_plain_paths() {
        for good in ["/mnt", "/mnt/src", "/home/a b/ä", "/.x"] {
            assert!(is_target(good), "{good}");
        }
        for bad in ["", "/", "mnt", "/mnt/", "/mnt//src", "/mnt/./src", "/mnt/../etc", "/a\nb", "/a\0"] {
            assert!(!is_target(bad), "{bad:?}");
        }
    }

    #[test]
    fn names_are_chosen_and_kept() {
        let mut config = VmConfig::new("k");
        config.mounts = vec![mount("/mnt/src"), mount("/mnt-src"), mount("/ä"), mount("/.x")];
        complete(&mut config);
        let names: Vec<_> = config.mounts.iter().filter_map(|mount| mount.name.as_deref()).collect();
        assert_eq!(names, ["mnt-src", "mnt-src-2", "folder", "x"]);
        assert!(names.iter().all(|name| is_name(name)));
        let before = config.clone();
        complete(&mut config);
        assert_eq!(config, before);
    }

    #[test]
    fn what_cannot_be_or_may_not_be_is_refused() {
        let owner = Caller::owner();
        let refused = |mounts: Vec<MountConfig>| {
            let mut config = VmConfig::new("k");
            config.mounts = mounts;
            check(&owner, None, &config).unwrap_err().code()
        };
        assert_eq!(refused(vec![mount("/")]), ErrorCode::Invalid);
        assert_eq!(refused(vec![mount("/a"), mount("/a")]), ErrorCode::AlreadyExists);
        assert_eq!(refused(vec![mount("/a"); MOUNTS_MAX + 1]), ErrorCode::Invalid);
        for change in [
            |mount: &mut MountConfig| mount.folder = "relative".into(),
            |mount: &mut MountConfig| mount.folder = "/no/such/folder".into(),
            |mount: &mut MountConfig| mount.folder = "/etc/passwd".into(),
            |mount: &mut MountConfig| mount.owner = Some("me".into()),
            |mount: &mut MountConfig| mount.name = Some("../x".into()),
        ] {
            let mut bad = mount("/a");
            change(&mut bad);
            assert_eq!(refused(vec![bad]), ErrorCode::Invalid);
        }
    }

    #[test]
    fn a_share_has_the_number_of_what_it_shows() {
        let (a, mut b) = (mount("/a"), mount("/a"));
        assert_eq!(share_id(&a), share_id(&b));
        b.read_only = true;
        assert_ne!(share_id(&a), share_id(&b));
    }
}
