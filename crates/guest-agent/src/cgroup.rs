//! cgroup v2: the hierarchy, and one cgroup per container with its limits
//! ([`limits`]).

mod limits;

use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout::{CGROUP_CONTAINERS, CGROUP_ROOT};
use guest_api::proto::Resources;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags as Attr, MoveMountFlags, move_mount};
use std::fs;
use std::os::fd::OwnedFd;

/// Mounts the hierarchy and hands all controllers down to the containers.
pub(crate) fn mount_hierarchy() -> Result<(), AgentError> {
    let attributes = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
    let options = [("nsdelegate", ""), ("memory_recursiveprot", "")];
    let mount = fs_mount::new("cgroup2", &options, attributes)?;
    move_mount(
        mount,
        "",
        rustix::fs::CWD,
        CGROUP_ROOT,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .doing(|| format!("attaching the cgroup hierarchy to {CGROUP_ROOT}"))?;
    fs_mount::make_dir(CGROUP_CONTAINERS)?;
    let path = format!("{CGROUP_ROOT}/cgroup.controllers");
    let list = fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
    let enable = enable_all(&list);
    if !enable.is_empty() {
        for dir in [CGROUP_ROOT, CGROUP_CONTAINERS] {
            let path = format!("{dir}/cgroup.subtree_control");
            fs::write(&path, &enable).doing(|| format!("writing \"{enable}\" to {path}"))?;
        }
    }
    Ok(())
}

/// What to write to cgroup.subtree_control so that every controller of
/// `cgroup.controllers` is handed down.
fn enable_all(controllers: &str) -> String {
    let plus: Vec<_> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    plus.join(" ")
}

/// A container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: String,
    /// Files that `unified` set.
    unified: Vec<String>,
}

impl Cgroup {
    /// Makes the cgroup of container `id` and sets its limits.
    pub(crate) fn create(id: &str, resources: &Resources) -> Result<Self, AgentError> {
        let mut cgroup = Self::at(format!("{CGROUP_CONTAINERS}/{id}"));
        rustix::fs::mkdir(&cgroup.path, Mode::from_raw_mode(0o755))
            .doing(|| format!("making the cgroup {}", cgroup.path))?;
        if let Err(e) = cgroup.set_first(resources) {
            let _ = cgroup.remove();
            return Err(e);
        }
        Ok(cgroup)
    }

    /// One that exists already.
    pub(crate) fn at(path: String) -> Self {
        let unified = Vec::new();
        Self { path, unified }
    }

    /// The parent of all containers'.
    pub(crate) fn of_pod() -> Self {
        Self::at(CGROUP_CONTAINERS.to_owned())
    }

    /// Makes a cgroup inside it, for a process executed there and what that
    /// starts. It has no limits of its own: those of its parent count.
    pub(crate) fn create_below(&self, name: &str) -> Result<Self, Errno> {
        let path = format!("{}/{name}", self.path);
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
        Ok(Self::at(path))
    }

    /// A descriptor of it, for making processes inside.
    pub(crate) fn open(&self) -> Result<OwnedFd, AgentError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty())
            .doing(|| format!("opening the cgroup {}", self.path))
    }

    /// SIGKILL to every process in it.
    pub(crate) fn kill(&self) -> Result<(), AgentError> {
        let path = format!("{}/cgroup.kill", self.path);
        fs::write(&path, "1").doing(|| format!("writing to {path}"))
    }

    /// Moves its processes into the cgroup above it.
    pub(crate) fn hand_up(&self) -> Result<(), AgentError> {
        let Some((above, _)) = self.path.rsplit_once('/') else {
            return Ok(());
        };
        let path = format!("{above}/cgroup.procs");
        for pid in self.processes()? {
            // One that has ended meanwhile, or is about to, stays.
            let moved = fs::write(&path, pid.as_raw_nonzero().to_string());
            if let Err(e) = moved
                && e.raw_os_error() != Some(libc::ESRCH)
            {
                return Err(e).doing(|| format!("writing to {path}"));
            }
        }
        Ok(())
    }

    /// Sends `signal` to every process in it and in cgroups below it.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), AgentError> {
        for pid in self.processes()? {
            match crate::sys::process::send_signal(pid, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(e) => {
                    return Err(e).doing(|| format!("signalling process {}", pid.as_raw_nonzero()));
                }
            }
        }
        Ok(())
    }

    /// Every process in it and in cgroups below it.
    pub(crate) fn processes(&self) -> Result<Vec<rustix::process::Pid>, AgentError> {
        let mut pids = Vec::new();
        let mut dirs = vec![self.path.clone()];
        let mut left = MAX_CGROUPS;
        while let Some(dir) = dirs.pop()
            && left > 0
        {
            left -= 1;
            let path = format!("{dir}/cgroup.procs");
            // A cgroup below may vanish while its list is read.
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            pids.extend(
                text.lines()
                    .filter_map(|l| rustix::process::Pid::from_raw(l.parse().ok()?)),
            );
            dirs.extend(children(&dir));
        }
        Ok(pids)
    }

    /// Whether the OOM killer ended a process of it. False where the kernel does
    /// not say.
    pub(crate) fn oom_killed(&self) -> bool {
        self.oom_kills() > 0
    }

    /// How many of its processes the OOM killer has ended; 0 where the kernel
    /// does not say.
    pub(crate) fn oom_kills(&self) -> u64 {
        fs::read_to_string(format!("{}/memory.events", self.path))
            .ok()
            .and_then(|text| flat_key(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// Removes it and the cgroups that its processes made below; EBUSY while a
    /// process is left.
    pub(crate) fn remove(&self) -> Result<(), Errno> {
        remove_tree(&self.path, 0)
    }
}

/// Most cgroups of one container that are looked into.
const MAX_CGROUPS: usize = 10_000;

fn children(dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.path().into_os_string().into_string().ok())
        .collect()
}

/// Deeper trees than a container could need are left alone (and reported as
/// EBUSY), so that recursion stays bounded.
const MAX_DEPTH: usize = 64;

fn remove_tree(dir: &str, depth: usize) -> Result<(), Errno> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) if depth < MAX_DEPTH => {}
        Err(e) => return Err(e),
    }
    for child in children(dir) {
        remove_tree(&child, depth + 1)?;
    }
    match rustix::fs::rmdir(dir) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// The number behind `key` in a flat-keyed cgroup file.
pub(crate) fn flat_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_oom_kill_is_read_from_the_events() {
        let text = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(flat_key(text, "oom_kill"), Some(2));
        assert_eq!(flat_key(text, "oom"), Some(3));
        assert_eq!(flat_key(text, "absent"), None);
    }

    #[test]
    fn all_controllers_are_handed_down() {
        assert_eq!(enable_all("cpuset cpu memory\n"), "+cpuset +cpu +memory");
        assert_eq!(enable_all("\n"), "");
    }

    proptest! {
        #[test]
        fn any_event_file_is_survived(text in "\\PC{0,80}", key in "[a-z_]{1,8}") {
            let _ = flat_key(&text, &key);
        }
    }
}
