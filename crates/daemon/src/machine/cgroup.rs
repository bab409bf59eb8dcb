//! Control groups, version 2 (the kernel's Documentation/admin-guide/cgroup-v2.rst): one for each machine, where
//! this daemon may make them. As the system's daemon that is below a group of its own at the top; as a user's, below
//! what the service manager has delegated to the user.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// The group that holds those of all machines.
const BASE: &str = "arnia";
/// Of the quota of processor time, in microseconds.
const PERIOD_US: u64 = 100_000;
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
        let parent = match system {
            true => root.to_owned(),
            false => {
                let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
                let delegated = delegated(&own).ok_or(
                    "this session has no control group of its own: `systemd-run --user arnia daemon` has",
                )?;
                root.join(delegated)
            }
        };
        Cgroups::below(&parent)
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

/// The part of this process' group that belongs to the user's service manager, from `/proc/self/cgroup`.
fn delegated(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
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
