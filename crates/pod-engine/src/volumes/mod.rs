//! A pod's volumes on the host: made before its sandbox, kept in line with their
//! objects while it runs, removed with it.
//!
//! Volumes of objects are directories below `<run>/volumes/<pod id>`, so in
//! memory on any usual host: their files may be secret. All calls block.

mod atomic_dir;
mod host_path;
mod payload;

pub(crate) use host_path::{Allowed, Wanted};

use crate::facts::Facts;
use crate::manifest::{PodSecurityContext, Volume};
use crate::objects::{HostPath, Objects, io_limits};
use rustix::fs::FileType;
use sandbox::{BlockVolumeSpec, DiskPath, FileSystem, IoLimits, PathVolume, ShownAs};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a volume cannot be mounted yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotMounted {
    #[error("{kind} {namespace}/{name} is not there; give it by `spherule apply`")]
    NoObject {
        kind: &'static str,
        namespace: String,
        name: String,
    },
    #[error("{kind} {namespace}/{name} has no key {key:?}")]
    NoKey {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error("{file:?} is a file and cannot be the directory of {path:?}")]
    Conflict { file: String, path: String },
    #[error("its files have {bytes} bytes together; a volume of objects has at most {most}")]
    TooLarge { bytes: usize, most: usize },
    #[error(
        "PersistentVolumeClaim {namespace}/{name} has no volume yet; give a PersistentVolume that suits it"
    )]
    Unbound { namespace: String, name: String },
    #[error("PersistentVolume {0} is not there; give it by `spherule apply`")]
    NoVolume(String),
    #[error(
        "{} does not lie in a directory of the host that pods may have: {}",
        path.display(), shown(allowed)
    )]
    NotAllowed {
        path: PathBuf,
        allowed: Vec<PathBuf>,
    },
    #[error(
        "{} is a directory of the host, whose I/O cannot be limited; take the limits from its PersistentVolume, or give it a block device or an image file",
        .0.display()
    )]
    Unlimited(PathBuf),
    #[error("{} is not {what}", path.display())]
    WrongType { path: PathBuf, what: &'static str },
    #[error("{}", path.display())]
    Files { path: PathBuf, source: io::Error },
}

impl NotMounted {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Files {
            path: path.to_owned(),
            source,
        }
    }
}

fn shown(allowed: &[PathBuf]) -> String {
    if allowed.is_empty() {
        return "there is none; the daemon's --allow-host-path names them".to_owned();
    }
    let dirs: Vec<String> = allowed.iter().map(|d| d.display().to_string()).collect();
    format!("these are {} (--allow-host-path)", dirs.join(", "))
}

/// Where volumes lie, and what of the host may be one.
#[derive(Debug)]
pub(crate) struct Volumes {
    dir: PathBuf,
    allowed: Allowed,
}

/// What of the host a mount of a volume shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OnHost {
    pub(crate) path: PathBuf,
    /// Directories that it must lie in, links followed.
    pub(crate) within: Vec<PathBuf>,
    pub(crate) read_only: bool,
}

impl Volumes {
    /// Volumes below `<run>/volumes`.
    pub(crate) fn new(run: &Path, allowed: Allowed) -> Self {
        Self {
            dir: run.join("volumes"),
            allowed,
        }
    }

    pub(crate) fn allowed(&self) -> &Allowed {
        &self.allowed
    }

    fn pod_dir(&self, pod_id: &str) -> PathBuf {
        self.dir.join(pod_id)
    }

    /// Makes all volumes of a pod that are the host's, or says which one cannot be.
    /// Returns those that its VM gets as disks.
    pub(crate) fn mount(
        &self,
        facts: &Facts<'_>,
        objects: &Objects,
    ) -> Result<Vec<PathVolume>, Failed> {
        let dir = self.pod_dir(&facts.pod.id);
        private_dir(&dir).map_err(|error| Failed::new("", NotMounted::io(&dir, error)))?;
        let mut disks = Vec::new();
        for volume in &facts.manifest.spec.volumes {
            let mounted = self.mount_one(volume, facts, objects);
            disks.extend(mounted.map_err(|error| Failed::new(&volume.name, error))?);
        }
        Ok(disks)
    }

    fn mount_one(
        &self,
        volume: &Volume,
        facts: &Facts<'_>,
        objects: &Objects,
    ) -> Result<Option<PathVolume>, NotMounted> {
        self.write(volume, facts, objects)?;
        if let Some(host) = &volume.host_path {
            self.allowed
                .open(Path::new(&host.path), Wanted::of(&host.kind))?;
        }
        if volume.persistent_volume_claim.is_none() {
            return Ok(None);
        }
        let claimed = claimed(volume, &facts.pod.namespace, objects)?;
        let wanted = match &claimed.host_path {
            Some(host) => Wanted::of(&host.kind),
            // A local volume is made by the node's administrator.
            None if claimed.is_block => Wanted::Disk,
            None => Wanted::DirectoryOrDisk,
        };
        let fd = self.allowed.open(&claimed.path, wanted)?;
        let context = &facts.manifest.spec.security_context;
        let group = fs_group(context);
        let stat = rustix::fs::fstat(&fd).map_err(|e| NotMounted::io(&claimed.path, e.into()))?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if claimed.host_path.is_none() && !is_directory {
            let mut disk = disk(&volume.name, claimed, &self.allowed);
            disk.volume.group = group;
            disk.volume.group_change = context.fs_group_change_policy;
            return Ok(Some(disk));
        }
        if claimed.limits != IoLimits::default() {
            return Err(NotMounted::Unlimited(claimed.path));
        }
        // As in Kubernetes, a hostPath stays its owner's.
        if let Some(group) = group
            && claimed.host_path.is_none()
            && !claimed.read_only
        {
            let given = fs_group::give(&fd, group, context.fs_group_change_policy);
            given.map_err(|error| NotMounted::io(&claimed.path, error.into()))?;
        }
        Ok(None)
    }

    /// Writes the files of a volume that is made of objects. Says whether older ones
    /// are there, too.
    fn write(
        &self,
        volume: &Volume,
        facts: &Facts<'_>,
        objects: &Objects,
    ) -> Result<bool, NotMounted> {
        let Some(payload) = payload::payload(volume, facts, objects) else {
            return Ok(false);
        };
        let dir = self.pod_dir(&facts.pod.id).join(&volume.name);
        let group = fs_group(&facts.manifest.spec.security_context);
        atomic_dir::write(&dir, &payload?, group).map_err(|error| NotMounted::io(&dir, error))
    }

    /// Brings volumes that are mounted in line with their objects. Where an object
    /// is gone, what was there stays. Says after which time, if any, this is to be
    /// called again to have what was replaced swept away.
    pub(crate) fn refresh(
        &self,
        facts: &Facts<'_>,
        objects: &Objects,
    ) -> Result<Option<Duration>, Failed> {
        let mut has_older = false;
        if !self.pod_dir(&facts.pod.id).exists() {
            return Ok(None);
        }
        for volume in &facts.manifest.spec.volumes {
            match self.write(volume, facts, objects) {
                Ok(older) => has_older |= older,
                Err(error @ NotMounted::Files { .. }) => {
                    return Err(Failed::new(&volume.name, error));
                }
                Err(error) => {
                    tracing::warn!(pod = facts.pod.id, volume = volume.name, %error, "a volume stays as it was");
                }
            }
        }
        Ok(has_older.then_some(atomic_dir::GRACE))
    }

    /// Removes the volumes that were made for a pod.
    pub(crate) fn remove(&self, pod_id: &str) -> Result<(), crate::EngineError> {
        crate::engine::remove_dir(&self.pod_dir(pod_id))
    }

    /// The pods that have a directory here.
    pub(crate) fn pods(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.collect()
    }

    /// What of the host a mount of `volume` shows; `None` where it shows nothing of
    /// the host.
    pub(crate) fn on_host(
        &self,
        volume: &Volume,
        facts: &Facts<'_>,
        objects: &Objects,
    ) -> Result<Option<OnHost>, NotMounted> {
        if volume.projections().is_some() {
            let dir = self.pod_dir(&facts.pod.id);
            return Ok(Some(OnHost {
                path: dir.join(&volume.name),
                within: vec![dir],
                read_only: true,
            }));
        }
        let (path, read_only) = if let Some(host) = &volume.host_path {
            (PathBuf::from(&host.path), false)
        } else if volume.persistent_volume_claim.is_some() {
            let claimed = claimed(volume, &facts.pod.namespace, objects)?;
            (claimed.path, claimed.read_only)
        } else {
            return Ok(None);
        };
        Ok(Some(OnHost {
            path,
            within: self.allowed.dirs(),
            read_only,
        }))
    }
}

/// A claim's volume as a disk of the pod's VM.
fn disk(name: &str, claimed: Claimed, allowed: &Allowed) -> PathVolume {
    let shown_as = match claimed.is_block {
        true => ShownAs::Device,
        false => ShownAs::FileSystem {
            kind: match claimed.fs_type.as_str() {
                "ext4" => Some(FileSystem::Ext4),
                "xfs" => Some(FileSystem::Xfs),
                _ => None,
            },
            make: true,
        },
    };
    PathVolume {
        volume: BlockVolumeSpec {
            name: name.to_owned(),
            read_only: claimed.read_only,
            shown_as,
            // Longer names are no serial numbers.
            serial: match claimed.volume.len() {
                1..=64 => claimed.volume,
                _ => String::new(),
            },
            group: None,
            group_change: fs_group::Policy::default(),
            limits: claimed.limits,
            exclusive: true,
        },
        at: DiskPath {
            path: claimed.path,
            within: allowed.dirs(),
        },
    }
}

/// What a claim gives.
struct Claimed {
    /// Name of its volume.
    volume: String,
    path: PathBuf,
    /// Its containers have the device.
    is_block: bool,
    fs_type: String,
    limits: IoLimits,
    /// Its hostPath; `None` for a local volume.
    host_path: Option<HostPath>,
    read_only: bool,
}

fn claimed(volume: &Volume, namespace: &str, objects: &Objects) -> Result<Claimed, NotMounted> {
    let wanted = volume.persistent_volume_claim.clone().unwrap_or_default();
    let claim = objects.claim(namespace, &wanted.claim_name);
    let claim = claim.ok_or_else(|| NotMounted::NoObject {
        kind: "PersistentVolumeClaim",
        namespace: namespace.to_owned(),
        name: wanted.claim_name.clone(),
    })?;
    let name = claim.spec.volume_name;
    if name.is_empty() {
        return Err(NotMounted::Unbound {
            namespace: namespace.to_owned(),
            name: wanted.claim_name,
        });
    }
    let bound = objects.volume(&name);
    let bound = bound.ok_or_else(|| NotMounted::NoVolume(name.clone()))?;
    let path = match (&bound.spec.local, &bound.spec.host_path) {
        (Some(local), _) => local.path.clone(),
        (None, Some(host)) => host.path.clone(),
        (None, None) => String::new(),
    };
    let only_reads = claim
        .spec
        .access_modes
        .iter()
        .all(|mode| mode == "ReadOnlyMany");
    Ok(Claimed {
        volume: name,
        path: PathBuf::from(path),
        is_block: bound.spec.is_block(),
        fs_type: bound.spec.local.unwrap_or_default().fs_type,
        // Checked when it was given.
        limits: io_limits(&bound.metadata.annotations).unwrap_or_default(),
        host_path: bound.spec.host_path,
        read_only: wanted.read_only || only_reads,
    })
}

/// The group of a pod's volumes.
pub(crate) fn fs_group(context: &PodSecurityContext) -> Option<u32> {
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// A volume that could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume:?} cannot be mounted")]
pub(crate) struct Failed {
    volume: String,
    source: NotMounted,
}

impl Failed {
    fn new(volume: &str, source: NotMounted) -> Self {
        Self {
            volume: volume.to_owned(),
            source,
        }
    }
}

/// A directory that nobody else of the host looks into.
fn private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
