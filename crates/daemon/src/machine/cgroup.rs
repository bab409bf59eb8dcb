//! Control groups, version 2 (the kernel's Documentation/admin-guide/cgroup-v2.rst): one for each machine, where
//! this daemon may make them. As the system's daemon that is below a group of its own at the top; as a user's, below
//! what the service manager has delegated to the user, or else in the daemon's own group if that was given to it: by
//! `Delegate=` of a unit, or by a container. There the daemon moves into a group beside those of machines, because one
//! with processes in it can divide nothing among groups below.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// The group that holds those of all machines.
const BASE: &str = "arnia";
/// Of the quota of processor time, in microseconds.
const PERIOD_US: u64 = 100_000;
/// The daemon's, where it makes room in its own for those of machines.
const DAEMON: &str = "arnia-daemon";
const CONTROLLERS: [&str; 3] = ["cpu", "cpuset", "memory"];

/// Where the groups of machines are made.
#[derive(Debug)]
pub(crate) struct Cgroups {
    base: PathBuf,
    controllers: Vec<&'static str>,
}

/// What a group is to be limited to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupLimits {
    /// Hundredths of a processor.
    pub(crate) cpu: Option<u32>,
    pub(crate) cpu_weight: u32,
    /// Processors, as a list.
    pub(crate) cpu_set: Option<String>,
    /// Bytes that its processes may never have more of.
    pub(crate) memory: u64,
}

impl Cgroups {
    /// Makes the group of all machines.
    ///
    /// # Errors
    /// If that cannot be, a clause that says why.
    pub(crate) fn open(system: bool) -> Result<Cgroups, String> {
        let root = Path::new(ROOT);
        if !root.join("cgroup.controllers").exists() {
            return Err(format!("control groups of version 2 are not mounted at {ROOT}"));
        }
        if system {
            return Cgroups::below(root);
        }
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        if let Some(delegated) = delegated(&own)
            && let Ok(groups) = Cgroups::below(&root.join(delegated))
        {
            return Ok(groups);
        }
        let own = own_group(&own).ok_or("this process has no control group of version 2")?;
        Cgroups::within(&root.join(own), std::process::id())
    }

    /// Below the group that a daemon is in, which has to be its own.
    fn within(own: &Path, pid: u32) -> Result<Cgroups, String> {
        // An earlier daemon has made room, and started this one.
        if let Some(parent) = own.parent().filter(|_| own.file_name().is_some_and(|name| name == DAEMON)) {
            return Cgroups::below(parent);
        }
        let refused = |why: String| {
            format!(
                "this session has no control group of its own ({}: {why}): `systemd-run --user arnia daemon` has",
                own.display()
            )
        };
        let cannot = |e: io::Error| refused(e.to_string());
        let processes = own.join("cgroup.procs");
        let others = |text: String| text.lines().filter(|line| *line != pid.to_string()).count();
        match fs::read_to_string(&processes).map(others).map_err(cannot)? {
            0 => {}
            number => return Err(refused(format!("{number} other processes are in it"))),
        }
        let leaf = own.join(DAEMON);
        make(&leaf).and_then(|()| write(&leaf.join("cgroup.procs"), &pid.to_string())).map_err(cannot)?;
        Cgroups::below(own).inspect_err(|_| {
            // Nothing is gained by it.
            let _ = write(&processes, &pid.to_string()).and_then(|()| fs::remove_dir(&leaf));
        })
    }

    fn below(parent: &Path) -> Result<Cgroups, String> {
        let base = parent.join(BASE);
        let refused = |e: io::Error| format!("groups cannot be made in {}: {e}", base.display());
        make(&base).map_err(refused)?;
        // What an earlier daemon has left can be there where nothing more can be made.
        let probe = base.join(format!("probe-{}", std::process::id()));
        make(&probe).and_then(|()| fs::remove_dir(&probe)).map_err(refused)?;
        let enabled = |folder: &Path, name: &str| {
            let control = folder.join("cgroup.subtree_control");
            let has = || {
                let text = fs::read_to_string(&control).unwrap_or_default();
                text.split_whitespace().any(|word| word == name)
            };
            has() || write(&control, &format!("+{name}")).is_ok() && has()
        };
        let controllers: Vec<_> =
            CONTROLLERS.into_iter().filter(|name| enabled(parent, name) && enabled(&base, name)).collect();
        match controllers.is_empty() {
            true => Err(format!("{} may use none of {}", base.display(), CONTROLLERS.join(", "))),
            false => Ok(Cgroups { base, controllers }),
        }
    }

    /// What workers are limited by in other ways.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        CONTROLLERS.into_iter().filter(|name| !self.has(name)).collect()
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    fn group(&self, id: &str) -> PathBuf {
        self.base.join(id)
    }

    /// Puts a process into the machine's group.
    pub(crate) fn adopt(&self, id: &str, pid: u32) -> io::Result<()> {
        let group = self.group(id);
        make(&group)?;
        write(&group.join("cgroup.procs"), &pid.to_string())
    }

    /// Limits the machine's group, as far as there are controllers for it.
    pub(crate) fn limit(&self, id: &str, limits: &GroupLimits) -> io::Result<()> {
        let group = self.group(id);
        if self.has("cpu") {
            let quota =
                limits.cpu.map_or("max".to_owned(), |cpu| (u64::from(cpu) * PERIOD_US / 100).to_string());
            write(&group.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?;
            write(&group.join("cpu.weight"), &limits.cpu_weight.to_string())?;
        }
        if self.has("cpuset") {
            self.keep_to(&group, limits.cpu_set.as_deref())?;
        }
        if self.has("memory") {
            write(&group.join("memory.max"), &limits.memory.to_string())?;
        }
        Ok(())
    }

    /// Keeps a group to these processors, or to those of the group above.
    fn keep_to(&self, group: &Path, cpu_set: Option<&str>) -> io::Result<()> {
        let file = group.join("cpuset.cpus");
        match cpu_set {
            Some(cpus) => write(&file, cpus),
            // As it was made.
            None if fs::read_to_string(&file)?.trim().is_empty() => Ok(()),
            // A group that has processes takes no empty list (ENOSPC; `validate_change` in kernel/cgroup/cpuset.c).
            None => write(&file, fs::read_to_string(self.base.join("cpuset.cpus.effective"))?.trim()),
        }
    }

    /// Takes the machine's group away, when its process has ended.
    pub(crate) fn remove(&self, id: &str) {
        let _ = fs::remove_dir(self.group(id));
    }
}

/// This process' group, from `/proc/self/cgroup`.
fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The part of this process' group that belongs to the user's service manager, from `/proc/self/cgroup`.
fn delegated(text: &str) -> Option<&str> {
    let path = own_group(text)?;
    let name = path.split('/').find(|part| part.starts_with("user@") && part.ends_with(".service"))?;
    let end = path.find(name)? + name.len();
    Some(&path[..end])
}

/// Makes a group that may be there already.
fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_part_of_a_group_is_found() {
        let text = "1:cpu:/\n0::/user.slice/user-1000.slice/user@1000.service/app.slice/arnia.service\n";
        assert_eq!(delegated(text), Some("user.slice/user-1000.slice/user@1000.service"));
        assert_eq!(delegated("0::/user.slice/user-1000.slice/session-2.scope\n"), None);
        assert_eq!(delegated("0::/\n"), None);
        assert_eq!(own_group("1:cpu:/\n0::/machine/one\n"), Some("machine/one"));
    }

    /// With ordinary files, which a process does not leave when it is written to another.
    #[test]
    fn a_daemon_that_is_alone_in_its_group_makes_room_in_it() {
        let own = std::env::temp_dir().join(format!("arnia-own-cgroup-{}", std::process::id()));
        let base = own.join(BASE);
        fs::create_dir_all(&base).unwrap();
        for folder in [&own, &base] {
            // All there is: an ordinary file would take a request for more in the place of what it had.
            fs::write(folder.join("cgroup.subtree_control"), "cpu cpuset io memory\n").unwrap();
        }
        fs::write(own.join("cgroup.procs"), "17\n18\n").unwrap();
        let reason = Cgroups::within(&own, 17).unwrap_err();
        assert!(reason.contains("1 other processes") && reason.contains("systemd-run --user"), "{reason}");
        assert!(!own.join(DAEMON).exists(), "something was left");
        fs::write(own.join("cgroup.procs"), "17\n").unwrap();
        assert!(Cgroups::within(&own, 17).unwrap().has("cpu"));
        assert_eq!(fs::read_to_string(own.join(DAEMON).join("cgroup.procs")).unwrap(), "17");
        // Started by the one before, it is in that one's place.
        assert_eq!(Cgroups::within(&own.join(DAEMON), 19).unwrap().base, base);
        fs::remove_dir_all(own).unwrap();
    }

    /// With ordinary files in the place of the kernel's: what is written where.
    #[test]
    fn limits_are_written_in_the_kernels_form() {
        let parent = std::env::temp_dir().join(format!("arnia-cgroup-{}", std::process::id()));
        let base = parent.join(BASE);
        fs::create_dir_all(&base).unwrap();
        for folder in [&parent, &base] {
            fs::write(folder.join("cgroup.subtree_control"), "cpu cpuset io\n").unwrap();
        }
        let groups = Cgroups::below(&parent).unwrap();
        // An ordinary file takes "+memory" in the place of what it had, so that it looks enabled nowhere.
        assert!(groups.has("cpu") && groups.has("cpuset") && !groups.has("memory"));
        assert_eq!(groups.missing(), ["memory"]);
        groups.adopt("one", 1234).unwrap();
        let limits =
            GroupLimits { cpu: Some(150), cpu_weight: 20, cpu_set: Some("0-1".into()), memory: 1 << 30 };
        groups.limit("one", &limits).unwrap();
        let read = |name: &str| fs::read_to_string(base.join("one").join(name)).unwrap_or_default();
        assert_eq!(read("cgroup.procs"), "1234");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!((read("cpu.weight"), read("cpuset.cpus")), ("20".into(), "0-1".into()));
        assert_eq!(read("memory.max"), "");
        fs::write(base.join("cpuset.cpus.effective"), "0-3\n").unwrap();
        groups.limit("one", &GroupLimits { cpu_weight: 100, ..GroupLimits::default() }).unwrap();
        assert_eq!((read("cpu.max"), read("cpuset.cpus")), ("max 100000".into(), "0-3".into()));
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn what_cannot_be_had_has_a_reason() {
        let parent = std::env::temp_dir().join(format!("arnia-no-cgroup-{}", std::process::id()));
        let reason = Cgroups::below(&parent).unwrap_err();
        assert!(reason.contains("cannot be made in") && reason.contains("No such file"), "{reason}");
        fs::create_dir_all(parent.join(BASE)).unwrap();
        assert!(Cgroups::below(&parent).unwrap_err().contains("may use none of cpu"));
        assert_eq!(fs::read_dir(parent.join(BASE)).unwrap().count(), 0, "something was left");
        fs::remove_dir_all(parent).unwrap();
    }
}
