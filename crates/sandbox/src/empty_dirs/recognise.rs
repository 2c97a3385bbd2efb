//! Whether what a mount shows is an emptyDir that a kubelet made for this very pod.
//!
//! The CRI names paths, not volumes. What a kubelet's path means is told by where what
//! is there truly lies, links followed, and by the pod's own UID in it; nothing is
//! guessed from what the request calls it. The kubelet's layout (`pkg/volume/emptydir`
//! and `pkg/volume/util/subpath` of Kubernetes):
//!
//! ```text
//! <root>/pods/<uid>/volumes/kubernetes.io~empty-dir/<volume>           a directory, or
//!                                                a tmpfs of its own (medium Memory)
//! <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<number>      a bind mount of
//!                                                something beneath it (subPath)
//! ```

use super::{EmptyDir, Medium};
use crate::error::SandboxError;
use crate::mountinfo;
use crate::shares::open;
use crate::spec::DirectorySpec;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, fstatfs,
    fstatvfs, openat2, statx,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Where a kubelet has a pod's emptyDirs.
const EMPTY_DIRS: [&str; 2] = ["volumes", "kubernetes.io~empty-dir"];
/// Where it binds what lies beneath a volume.
const SUB_PATHS: &str = "volume-subpaths";
/// statfs(2)
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Sizes of disks, which take of the node what is written to them: as large as the
/// node's own file system, within what a small guest has the memory to mount.
const DISK_GIB: std::ops::RangeInclusive<u64> = 1..=1024;

/// The emptyDir of the pod `uid` that `path` leads to; `None` if it leads elsewhere,
/// or nowhere. Blocks.
pub(super) fn find(path: &Path, uid: &str) -> Result<Option<EmptyDir>, SandboxError> {
    let failed = |e: Errno| SandboxError::file("cannot open", path, e.into());
    let found = match open(path) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let true_path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .map_err(|e| SandboxError::file("cannot find", path, e))?;
    let Some(place) = place(&true_path, uid) else {
        return Ok(None);
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let volume = place.volume();
    let dir = match openat2(CWD, volume, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Ok(dir) => dir,
        // A sub-path of a volume of another kind.
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(SandboxError::file("cannot open", volume, e.into())),
    };
    let top = look(&dir).map_err(failed)?;
    let Some(medium) = medium(&dir, &top).map_err(failed)? else {
        return Ok(None);
    };
    let sub_path = match &place {
        Place::Beneath(_, sub_path) => Some(sub_path.clone()),
        Place::Bound(_) => {
            let root = mountinfo::root_of(look(&found).map_err(failed)?.stx_mnt_id);
            let root = root.map_err(|e| SandboxError::file("cannot find", path, e))?;
            root.and_then(|root| beneath(&root, volume, matches!(medium, Medium::Memory { .. })))
        }
    };
    let sub_path = sub_path.filter(|sub| is_there(&dir, sub, &found));
    let Some(sub_path) = sub_path.and_then(|sub| sub.into_os_string().into_string().ok()) else {
        return Err(SandboxError::Invalid {
            field: "mounts",
            message: format!(
                "{} shows something of the emptyDir {} that is not in it any more, or whose name is not UTF-8: let the kubelet make the container again",
                path.display(),
                volume.display()
            ),
        });
    };
    Ok(Some(EmptyDir {
        name: format!(
            "emptydir-{:x}-{:x}-{:x}",
            top.stx_dev_major, top.stx_dev_minor, top.stx_ino
        ),
        path: volume.to_owned(),
        dir,
        sub_path,
        medium,
        top: DirectorySpec {
            uid: top.stx_uid,
            gid: top.stx_gid,
            mode: u32::from(top.stx_mode) & 0o7777,
        },
    }))
}

/// Where a true path lies.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// In this volume, at this path of it.
    Beneath(PathBuf, PathBuf),
    /// A bind mount of something in this volume, if that is an emptyDir.
    Bound(PathBuf),
}

impl Place {
    fn volume(&self) -> &Path {
        match self {
            Self::Beneath(volume, _) | Self::Bound(volume) => volume,
        }
    }
}

fn place(path: &Path, uid: &str) -> Option<Place> {
    let parts: Vec<Component<'_>> = path.components().collect();
    let is = |i: usize, name: &str| parts.get(i).is_some_and(|part| part.as_os_str() == name);
    let pod = (0..parts.len()).find(|i| is(*i, "pods") && is(i + 1, uid))? + 2;
    let root: PathBuf = parts[..pod].iter().collect();
    let [volumes, kind] = EMPTY_DIRS;
    let volume = |name: &Component<'_>| root.join(volumes).join(kind).join(name);
    if is(pod, volumes) && is(pod + 1, kind) {
        let (name, rest) = parts.get(pod + 2..)?.split_first()?;
        return Some(Place::Beneath(volume(name), rest.iter().collect()));
    }
    // <volume>/<container>/<number>
    if is(pod, SUB_PATHS) && parts.len() == pod + 4 {
        return Some(Place::Bound(volume(&parts[pod + 1])));
    }
    None
}

/// What of the volume a mount shows whose root, in the file system, is `root`. The
/// volume's own path there ends as it does here, from the pod's directory on.
fn beneath(root: &Path, volume: &Path, is_top: bool) -> Option<PathBuf> {
    if is_top {
        return root.strip_prefix("/").ok().map(Path::to_owned);
    }
    let tail: Vec<_> = volume.components().rev().take(5).collect();
    let tail: Vec<_> = tail.into_iter().rev().collect();
    let parts: Vec<_> = root.components().collect();
    let at = (0..parts.len()).find(|i| parts[*i..].starts_with(&tail))?;
    Some(parts[at + tail.len()..].iter().collect())
}

/// Whether the volume has this very file at that path.
fn is_there(volume: &OwnedFd, sub_path: &Path, found: &OwnedFd) -> bool {
    let sub_path = match sub_path.as_os_str().is_empty() {
        true => Path::new("."),
        false => sub_path,
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let opened = openat2(volume, sub_path, flags, Mode::empty(), resolve);
    let id = |stat: Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    match (opened.and_then(|fd| look(&fd)), look(found)) {
        (Ok(there), Ok(found)) => id(there) == id(found),
        _ => false,
    }
}

fn look(fd: &OwnedFd) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, wanted)
}

/// Where its bytes live; `None` for what else a kubelet mounts there (HugePages).
fn medium(dir: &OwnedFd, top: &Statx) -> Result<Option<Medium>, Errno> {
    let room = fstatvfs(dir)?;
    let bytes = room.f_blocks.saturating_mul(room.f_frsize);
    if !top.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        let gib = bytes.div_ceil(1 << 30);
        let gib = gib.clamp(*DISK_GIB.start(), *DISK_GIB.end());
        return Ok(Some(Medium::Disk { mib: gib << 10 }));
    }
    let is_tmpfs = fstatfs(dir)?.f_type == TMPFS_MAGIC;
    Ok(is_tmpfs.then_some(Medium::Memory { bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const UID: &str = "0f1e";

    fn kubelet() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().canonicalize().unwrap().join("pods").join(UID);
        let volume = pod.join("volumes/kubernetes.io~empty-dir/cache");
        fs::create_dir_all(&volume).unwrap();
        (root, volume)
    }

    #[test]
    fn the_pods_own_volume_is_known_by_its_true_path() {
        let (root, volume) = kubelet();
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
        let link = root.path().join("link");
        symlink(volume.join("a"), &link).unwrap();
        let whole = find(&volume, UID).unwrap().unwrap();
        assert_eq!((whole.sub_path.as_str(), whole.top.mode), ("", 0o2777));
        assert_eq!(whole.path, volume);
        assert!(matches!(whole.medium, Medium::Disk { mib } if mib >= 1 << 10));
        for (path, sub_path) in [(volume.join("a/b"), "a/b"), (link, "a")] {
            let part = find(&path, UID).unwrap().unwrap();
            assert_eq!(
                (part.sub_path.as_str(), &part.name),
                (sub_path, &whole.name)
            );
        }
    }

    #[test]
    fn what_lies_elsewhere_is_none() {
        let (root, volume) = kubelet();
        let pod = root.path().join("pods").join(UID);
        let secret = pod.join("volumes/kubernetes.io~secret/cache");
        let of_secret = pod.join("volume-subpaths/other/c/0");
        for dir in [&secret, &of_secret] {
            fs::create_dir_all(dir).unwrap();
        }
        let parent = volume.parent().unwrap().to_owned();
        for (path, uid) in [
            (&volume, "other"),
            (&volume, ""),
            (&secret, UID),
            (&of_secret, UID),
            (&parent, UID),
            (&pod, UID),
            (&volume.join("missing"), UID),
        ] {
            assert!(find(path, uid).unwrap().is_none(), "{path:?} {uid}");
        }
    }

    #[test]
    fn what_cannot_be_found_in_its_volume_is_an_error() {
        let (root, volume) = kubelet();
        // No bind mount of anything there, but a directory.
        let bound = root
            .path()
            .join("pods")
            .join(UID)
            .join("volume-subpaths/cache/c/0");
        fs::create_dir_all(&bound).unwrap();
        let error = find(&bound, UID).unwrap_err().to_string();
        assert!(error.contains("cache"), "{error}");
        assert!(find(&volume, UID).unwrap().is_some());
    }

    #[test]
    fn a_bind_s_place_is_told_by_its_root() {
        let volume = Path::new("/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/v");
        let inside = "pods/1/volumes/kubernetes.io~empty-dir/v";
        for (root, want) in [
            (format!("/var/lib/kubelet/{inside}/a/b"), Some("a/b")),
            // A file system of the kubelet's own; a subvolume.
            (format!("/{inside}/a"), Some("a")),
            (format!("/@x/kubelet/{inside}"), Some("")),
            (format!("/{inside}x/a"), None),
            ("/elsewhere/v/a".to_owned(), None),
        ] {
            let got = beneath(Path::new(&root), volume, false);
            assert_eq!(got.as_deref(), want.map(Path::new), "{root}");
        }
        let got = beneath(Path::new("/a"), volume, true);
        assert_eq!(got.as_deref(), Some(Path::new("a")));
    }
}
