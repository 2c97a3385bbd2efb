//! cgroup v2: the hierarchy, and one cgroup per container with its limits.

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
}

impl Cgroup {
    /// Makes the cgroup of container `id` and sets its limits.
    pub(crate) fn create(id: &str, resources: &Resources) -> Result<Self, AgentError> {
        let settings = settings(resources)?;
        let path = format!("{CGROUP_CONTAINERS}/{id}");
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
            .doing(|| format!("making the cgroup {path}"))?;
        let cgroup = Self { path };
        for (file, value) in settings {
            let path = format!("{}/{file}", cgroup.path);
            if let Err(e) = fs::write(&path, &value) {
                let _ = cgroup.remove();
                return Err(e).doing(|| format!("writing \"{value}\" to {path}"));
            }
        }
        Ok(cgroup)
    }

    /// One that exists already.
    #[cfg(test)]
    pub(crate) fn at(path: String) -> Self {
        Self { path }
    }

    /// Makes a cgroup inside it, for a process executed there and what that
    /// starts. It has no limits of its own: those of its parent count.
    pub(crate) fn create_below(&self, name: &str) -> Result<Self, Errno> {
        let path = format!("{}/{name}", self.path);
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
        Ok(Self { path })
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

    fn processes(&self) -> Result<Vec<rustix::process::Pid>, AgentError> {
        let mut pids = Vec::new();
        let mut dirs = vec![self.path.clone()];
        while let Some(dir) = dirs.pop() {
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
fn flat_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// The control files and values that `resources` ask for.
fn settings(resources: &Resources) -> Result<Vec<(&'static str, String)>, AgentError> {
    let mut out = Vec::new();
    let period = match resources.cpu_period_us {
        0 => 100_000,
        period @ 1_000..=1_000_000 => period,
        _ => {
            return Err(AgentError::invalid(
                "resources.cpu_period_us",
                "the CPU period must be from 1000 to 1000000 microseconds",
            ));
        }
    };
    match resources.cpu_quota_us {
        0 if resources.cpu_period_us != 0 => out.push(("cpu.max", format!("max {period}"))),
        0 => {}
        quota @ 1_000.. => out.push(("cpu.max", format!("{quota} {period}"))),
        _ => {
            return Err(AgentError::invalid(
                "resources.cpu_quota_us",
                "the CPU quota must be at least 1000 microseconds",
            ));
        }
    }
    match resources.cpu_weight {
        0 => {}
        weight @ 1..=10_000 => out.push(("cpu.weight", weight.to_string())),
        _ => {
            return Err(AgentError::invalid(
                "resources.cpu_weight",
                "the CPU weight must be from 1 to 10000",
            ));
        }
    }
    for (file, value) in [
        ("memory.max", resources.memory_max),
        ("memory.low", resources.memory_low),
        ("pids.max", resources.pids_max),
    ] {
        if value != 0 {
            out.push((file, value.to_string()));
        }
    }
    if resources.oom_group {
        out.push(("memory.oom.group", "1".to_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_limit_becomes_its_control_file() {
        let resources = Resources {
            cpu_quota_us: 50_000,
            cpu_period_us: 100_000,
            cpu_weight: 39,
            memory_max: 64 << 20,
            memory_low: 1 << 20,
            pids_max: 100,
            oom_group: true,
            ..Resources::default()
        };
        let got = settings(&resources).unwrap();
        let want = [
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "39"),
            ("memory.max", "67108864"),
            ("memory.low", "1048576"),
            ("pids.max", "100"),
            ("memory.oom.group", "1"),
        ];
        assert_eq!(got, want.map(|(file, value)| (file, value.to_owned())));
        assert!(settings(&Resources::default()).unwrap().is_empty());
    }

    #[test]
    fn limits_the_kernel_would_refuse_are_named() {
        let weight = Resources {
            cpu_weight: 10_001,
            ..Resources::default()
        };
        let error = settings(&weight).unwrap_err().into_wire();
        assert_eq!(error.field, "resources.cpu_weight");
        let quota = Resources {
            cpu_quota_us: 999,
            ..Resources::default()
        };
        let error = settings(&quota).unwrap_err().into_wire();
        assert_eq!(error.field, "resources.cpu_quota_us");
    }

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
