//! A cgroup for a VMM process, on hosts with version 2, version 1 or both.
//!
//! It is for accounting and for the daemon's own limits; a VM runs without it
//! where the host grants none.

use std::io;
use std::path::{Path, PathBuf};

/// Where cgroups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// Version 1 hierarchies in which the process gets a group.
const V1_CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "freezer"];

/// Why a group could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The name would leave the place of the groups.
    #[error("{0:?} is no name of a cgroup")]
    Name(String),
    /// No cgroups are mounted.
    #[error("no cgroup hierarchy is mounted below {MOUNT}")]
    NotMounted,
    /// The host refused.
    #[error("cgroup {} cannot be {what}", path.display())]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The group's directory.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// A group by one name in every hierarchy that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    dirs: Vec<PathBuf>,
    /// Groups above it are not ours to make.
    inside: bool,
}

impl Cgroup {
    /// Names a group, as "spherule/pod-1"; nothing is made yet.
    ///
    /// # Errors
    /// If the name is not a relative path, or no cgroups are mounted.
    pub fn named(name: &str) -> Result<Self, CgroupError> {
        Self::below(Path::new(MOUNT), name)
    }

    /// Names a group in one that somebody else makes: it is joined in those
    /// hierarchies only that have that one.
    ///
    /// # Errors
    /// As [`Self::named`].
    pub fn inside(parent: &str, name: &str) -> Result<Self, CgroupError> {
        Self::below(Path::new(MOUNT), &format!("{parent}/{name}")).map(|group| Self {
            inside: true,
            ..group
        })
    }

    pub(crate) fn below(mount: &Path, name: &str) -> Result<Self, CgroupError> {
        let sound = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !name.split('/').all(sound) {
            return Err(CgroupError::Name(name.to_owned()));
        }
        // A version 2 hierarchy is known by this file in its root.
        let roots = if mount.join("cgroup.controllers").exists() {
            vec![mount.to_owned()]
        } else {
            let v1 = V1_CONTROLLERS
                .iter()
                .map(|controller| mount.join(controller));
            v1.filter(|root| root.join("cgroup.procs").exists())
                .collect()
        };
        if roots.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        Ok(Self {
            dirs: roots.into_iter().map(|root| root.join(name)).collect(),
            inside: false,
        })
    }

    /// The group's directories.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Whether it is there, in any hierarchy.
    pub fn exists(&self) -> bool {
        self.dirs.iter().any(|dir| dir.exists())
    }

    /// Makes the group where it is missing and moves a process into it.
    ///
    /// # Errors
    /// What the first hierarchy that refuses says; the others are done.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.each("joined", |dir| {
            let parent = dir.parent().unwrap_or(dir);
            if self.inside && !parent.exists() {
                return Ok(());
            }
            std::fs::create_dir_all(dir)?;
            std::fs::write(dir.join("cgroup.procs"), pid.to_string())
        })
    }

    /// Removes the group, which is empty once its processes have ended. That it
    /// is gone already is as good.
    ///
    /// # Errors
    /// What the first hierarchy that refuses says; the others are done.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.each("removed", |dir| match std::fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    fn each(
        &self,
        what: &'static str,
        action: impl Fn(&Path) -> io::Result<()>,
    ) -> Result<(), CgroupError> {
        let mut first = Ok(());
        for dir in &self.dirs {
            if let Err(source) = action(dir) {
                let path = dir.clone();
                first = first.and(Err(CgroupError::Refused { what, path, source }));
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_cannot_leave_the_mount() {
        for name in ["", "/etc", "a/../../b", "a//b", "."] {
            let got = Cgroup::below(Path::new("/"), name);
            assert!(matches!(got, Err(CgroupError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn version_2_is_one_hierarchy_and_version_1_several() {
        let mount = tempfile::tempdir().unwrap();
        let root = mount.path();
        assert!(matches!(
            Cgroup::below(root, "a"),
            Err(CgroupError::NotMounted)
        ));
        for controller in ["memory", "pids"] {
            std::fs::create_dir(root.join(controller)).unwrap();
            std::fs::write(root.join(controller).join("cgroup.procs"), "").unwrap();
        }
        let v1 = Cgroup::below(root, "s/p").unwrap();
        assert_eq!(v1.dirs(), [root.join("memory/s/p"), root.join("pids/s/p")]);
        std::fs::write(root.join("cgroup.controllers"), "").unwrap();
        let v2 = Cgroup::below(root, "s/p").unwrap();
        assert_eq!(v2.dirs(), [root.join("s/p")]);
    }

    #[test]
    fn process_is_written_into_every_hierarchy() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::write(mount.path().join("cgroup.controllers"), "").unwrap();
        let group = Cgroup::below(mount.path(), "s/p").unwrap();
        group.add(42).unwrap();
        let procs = mount.path().join("s/p/cgroup.procs");
        assert_eq!(std::fs::read_to_string(&procs).unwrap(), "42");
        // Not a real hierarchy: a group with a file in it is not empty.
        assert!(group.remove().is_err());
        std::fs::remove_file(procs).unwrap();
        group.remove().unwrap();
        group.remove().unwrap();
    }

    #[test]
    fn group_above_is_not_made() {
        let mount = tempfile::tempdir().unwrap();
        for controller in ["memory", "pids"] {
            std::fs::create_dir(mount.path().join(controller)).unwrap();
            std::fs::write(mount.path().join(controller).join("cgroup.procs"), "").unwrap();
        }
        std::fs::create_dir(mount.path().join("pids/pod")).unwrap();
        let group = Cgroup {
            inside: true,
            ..Cgroup::below(mount.path(), "pod/vm").unwrap()
        };
        assert!(!group.exists());
        group.add(42).unwrap();
        assert!(group.exists());
        assert!(mount.path().join("pids/pod/vm/cgroup.procs").exists());
        assert!(!mount.path().join("memory/pod").exists());
    }
}
