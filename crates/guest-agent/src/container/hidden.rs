//! Paths of a container that are covered or may only be read.

use super::mounts;
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::rooted::Rooted;
use crate::sys::mount_attr;
use guest_api::proto::PathRules;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags as Attr;
use std::os::fd::OwnedFd;

/// Kernel files that containers do not see, as in other runtimes.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Kernel files that containers only read.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Most rules of one kind: each is a mount.
const MAX_RULES: usize = 1024;

/// The rules of a request, checked; `None` (absent) means the agent's own.
pub(crate) fn check(rules: Option<&PathRules>) -> Result<PathRules, AgentError> {
    let Some(rules) = rules else {
        let own = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
        return Ok(PathRules {
            masked: own(&MASKED),
            read_only: own(&READ_ONLY),
        });
    };
    for (kind, list) in [("masked", &rules.masked), ("read_only", &rules.read_only)] {
        if list.len() > MAX_RULES {
            let problem = format!("more than {MAX_RULES} paths");
            return Err(AgentError::invalid(format!("paths.{kind}"), problem));
        }
        for (i, path) in list.iter().enumerate() {
            mounts::check_destination(path, &format!("paths.{kind}[{i}]"))?;
        }
    }
    Ok(rules.clone())
}

/// Applies `rules` in the container's root. `null` is its /dev/null.
pub(crate) fn apply(rules: &PathRules, root: Rooted<'_>, null: &OwnedFd) -> Result<(), AgentError> {
    for (i, path) in rules.masked.iter().enumerate() {
        mask(path, root, null).map_err(|e| {
            let problem = format!("hiding {path}: {e}");
            AgentError::invalid(format!("paths.masked[{i}]"), problem)
        })?;
    }
    for path in &rules.read_only {
        protect(path, root).doing(|| format!("making {path} read-only"))?;
    }
    Ok(())
}

/// What is there to be ruled; nothing is fine.
fn find(path: &str, root: Rooted<'_>) -> Result<Option<OwnedFd>, Errno> {
    match root.open(path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

fn mask(path: &str, root: Rooted<'_>, null: &OwnedFd) -> Result<(), Errno> {
    let Some(target) = find(path, root)? else {
        return Ok(());
    };
    let stat = rustix::fs::fstat(&target)?;
    let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        fs_mount::new("tmpfs", &[("size", "4k")], Attr::MOUNT_ATTR_RDONLY)
            .map_err(|_| Errno::NOMEM)?
    } else {
        fs_mount::bind(null)?
    };
    fs_mount::attach(cover, target)
}

fn protect(path: &str, root: Rooted<'_>) -> Result<(), Errno> {
    let Some(target) = find(path, root)? else {
        return Ok(());
    };
    let bound = fs_mount::bind_tree(&target)?;
    mount_attr::add(&bound, Attr::MOUNT_ATTR_RDONLY, true)?;
    fs_mount::attach(bound, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_rules_are_the_agents_own_and_empty_ones_are_none() {
        let own = check(None).unwrap();
        assert!(own.masked.contains(&"/proc/kcore".to_owned()));
        assert!(own.read_only.contains(&"/proc/sys".to_owned()));
        let none = PathRules::default();
        assert_eq!(check(Some(&none)).unwrap(), none);
    }

    #[test]
    fn a_rule_that_is_no_path_is_refused_by_its_place() {
        for wrong in ["", "proc", "/", "/a/../b", "/a\0"] {
            let rules = PathRules {
                masked: vec!["/ok".to_owned()],
                read_only: vec!["/ok".to_owned(), wrong.to_owned()],
            };
            let error = check(Some(&rules)).unwrap_err().into_wire();
            assert_eq!(error.field, "paths.read_only[1]", "{wrong:?}");
        }
    }
}
