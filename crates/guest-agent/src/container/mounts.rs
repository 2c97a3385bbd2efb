//! A container's own mounts: volumes, images and shares of the host, checked,
//! and made ready outside the container to be attached inside.

use crate::disks::Extent;
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::rooted::{Escape, Missing, Rooted};
use crate::sys::mount_attr;
use crate::users::Users;
use guest_api::proto::Mount;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags as Attr;
use std::os::fd::{AsFd, OwnedFd};

/// Most mounts of a container.
const MAX_MOUNTS: usize = 512;
/// Longest name of a share: it is a file's name.
const MAX_NAME: usize = 255;

/// What a mount of a request shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A volume of the sandbox, by name.
    Volume,
    /// An image.
    Image(Extent),
    /// A file or directory of the host, by its name in the sandbox's shares.
    Share,
}

/// Where what a mount shows is in the agent's tree.
#[derive(Debug)]
pub(crate) enum Source {
    /// A volume's directory.
    Volume(String),
    /// The file system of a block volume.
    Disk(String),
    /// A mounted image.
    Image(String),
    /// In [`layout::SHARES`].
    Share,
}

/// A detached mount and where it goes.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) mount: OwnedFd,
    pub(crate) destination: String,
    pub(crate) missing: Missing,
    /// Field of the request to blame.
    pub(crate) field: String,
}

/// Checks the mounts of a request; what each of them shows comes out.
pub(crate) fn check(mounts: &[Mount]) -> Result<Vec<Wanted>, AgentError> {
    if mounts.len() > MAX_MOUNTS {
        let problem = format!("more than {MAX_MOUNTS} mounts");
        return Err(AgentError::invalid("mounts", problem));
    }
    let check = |(i, mount)| check_one(mount, &format!("mounts[{i}]"));
    mounts.iter().enumerate().map(check).collect()
}

fn check_one(mount: &Mount, field: &str) -> Result<Wanted, AgentError> {
    check_destination(&mount.destination, &format!("{field}.destination"))?;
    let bad =
        |part: &str, problem: &str| Err(AgentError::invalid(format!("{field}.{part}"), problem));
    let sub_path = &mount.sub_path;
    if sub_path.starts_with('/') || has_nul(sub_path) || climbs(sub_path) {
        return bad("sub_path", "must be a relative path without \"..\"");
    }
    if mount.host_to_container && mount.share.is_empty() {
        return bad(
            "host_to_container",
            "only what the host shares changes outside the guest",
        );
    }
    if mount.id_mapped && mount.share.is_empty() {
        return bad("id_mapped", "only what the host shares has a choice");
    }
    match (&mount.image, mount.volume.as_str(), mount.share.as_str()) {
        (Some(image), "", "") => Extent::check(image, &format!("{field}.image")).map(Wanted::Image),
        (None, "", "") => bad("volume", "neither a volume nor an image nor a share"),
        (None, _, "") => Ok(Wanted::Volume),
        (None, "", share) => {
            if share.contains(['/', '\0']) || share.len() > MAX_NAME || matches!(share, "." | "..")
            {
                return bad("share", "the name of a share is a file's name, no path");
            }
            Ok(Wanted::Share)
        }
        _ => bad("volume", "one of volume, image and share is wanted, no two"),
    }
}

/// Checks an absolute path in a container that something is to be mounted on.
pub(crate) fn check_destination(path: &str, field: &str) -> Result<(), AgentError> {
    let problem = if !path.starts_with('/') || has_nul(path) || climbs(path) {
        "must be an absolute path without \"..\""
    } else if path.split('/').all(|c| c.is_empty() || c == ".") {
        "the root itself cannot be a mount"
    } else {
        return Ok(());
    };
    Err(AgentError::invalid(field, problem))
}

fn has_nul(text: &str) -> bool {
    text.as_bytes().contains(&0)
}

fn climbs(path: &str) -> bool {
    path.split('/').any(|c| c == "..")
}

/// Makes the detached mounts, in the agent's tree.
pub(crate) fn plan(
    mounts: &[Mount],
    sources: &[Source],
    users: &Users,
) -> Result<Vec<Planned>, AgentError> {
    let pairs = mounts.iter().zip(sources).enumerate();
    pairs
        .map(|(i, (mount, source))| plan_one(mount, source, users, &format!("mounts[{i}]")))
        .collect()
}

fn plan_one(
    mount: &Mount,
    source: &Source,
    users: &Users,
    field: &str,
) -> Result<Planned, AgentError> {
    let found = match source {
        Source::Volume(directory) => in_volume(&open_directory(directory)?, mount),
        Source::Disk(directory) => in_mapped(&open_directory(directory)?, mount, users),
        Source::Image(mount_point) => {
            let rooted = open_directory(mount_point)?;
            let rooted = Rooted::new(rooted.as_fd(), Escape::Contain);
            rooted.open(&mount.sub_path, OFlags::PATH)
        }
        Source::Share => in_share(mount, users, field)?,
    }
    .map_err(|e| {
        let why = match e {
            Errno::XDEV => "it leads out of it".to_owned(),
            e => e.to_string(),
        };
        let problem = format!("opening \"{}\" of {}: {why}", mount.sub_path, name(mount));
        AgentError::invalid(format!("{field}.sub_path"), problem)
    })?;
    let doing = || format!("binding {}", name(mount));
    let stat = rustix::fs::fstat(&found).doing(doing)?;
    let missing = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Missing::Directory,
        FileType::Symlink => {
            let problem = "it ends in a symbolic link";
            return Err(AgentError::invalid(format!("{field}.sub_path"), problem));
        }
        _ => Missing::File,
    };
    Ok(Planned {
        mount: bind(&found, mount, source, users).doing(doing)?,
        destination: mount.destination.clone(),
        missing,
        field: format!("{field}.destination"),
    })
}

/// What a mount shows, for messages.
fn name(mount: &Mount) -> String {
    if mount.image.is_some() {
        "the image".to_owned()
    } else if mount.share.is_empty() {
        format!("the volume {}", mount.volume)
    } else {
        format!("the share {}", mount.share)
    }
}

pub(crate) fn open_directory(path: &str) -> Result<OwnedFd, AgentError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("opening {path}"))
}

/// What a mount shows of a volume. A directory that is missing is made as the kubelet
/// makes it: with the volume's own mode, so that it is for whom that is for.
fn in_volume(top: &OwnedFd, mount: &Mount) -> Result<OwnedFd, Errno> {
    let mode = rustix::fs::fstat(top)?.st_mode & 0o7777;
    let rooted = Rooted::new(top.as_fd(), Escape::Refuse);
    rooted.open_or_make(&mount.sub_path, Missing::DirectoryWith(mode))
}

/// As [`in_volume`], of a volume whose files belong to the containers' ids: by a mapped
/// mount what is made is their root's. The kernel binds nothing of a detached mount, so
/// it is found once more without.
fn in_mapped(top: &OwnedFd, mount: &Mount, users: &Users) -> Result<OwnedFd, Errno> {
    if users.fd().is_some() {
        let mapped = fs_mount::bind(top)?;
        users.map(&mapped, false)?;
        drop(in_volume(&mapped, mount)?);
    }
    in_volume(top, mount)
}

/// The outer error is the share's own, the inner one its sub-path's.
fn in_share(
    mount: &Mount,
    users: &Users,
    field: &str,
) -> Result<Result<OwnedFd, Errno>, AgentError> {
    let top = open_directory(layout::SHARES)?;
    let rooted = Rooted::new(top.as_fd(), Escape::Refuse);
    let share = rooted
        .open(&mount.share, OFlags::PATH | OFlags::NOFOLLOW)
        .map_err(|e| {
            let problem = format!("opening the share {}: {e}", mount.share);
            AgentError::invalid(format!("{field}.share"), problem)
        })?;
    if mount.sub_path.is_empty() {
        // A link's target would be the host's word for a place in the guest.
        let stat = rustix::fs::fstat(&share).doing(|| format!("looking at {}", mount.share))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let problem = format!("the share {} is a symbolic link", mount.share);
            return Err(AgentError::invalid(format!("{field}.share"), problem));
        }
        return Ok(Ok(share));
    }
    Ok(match mount.id_mapped {
        true => in_mapped(&share, mount, users),
        false => in_volume(&share, mount),
    })
}

fn bind(found: &OwnedFd, mount: &Mount, source: &Source, users: &Users) -> Result<OwnedFd, Errno> {
    let recursive = matches!(source, Source::Share);
    let bound = if recursive {
        fs_mount::bind_tree(found)?
    } else {
        fs_mount::bind(found)?
    };
    if !mount.host_to_container {
        mount_attr::make_private(&bound, recursive)?;
    }
    // What is on a disk that others have, too, belongs to the containers' ids.
    let mapped = matches!(source, Source::Image(_) | Source::Disk(_));
    if mapped || mount.id_mapped {
        users.map(&bound, recursive)?;
    }
    let mut attributes = match source {
        Source::Volume(_) => Attr::empty(),
        // Device nodes of others name other devices here.
        Source::Share | Source::Disk(_) => Attr::MOUNT_ATTR_NODEV,
        Source::Image(_) => {
            Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOSUID
        }
    };
    if mount.read_only {
        attributes |= Attr::MOUNT_ATTR_RDONLY;
    }
    if !attributes.is_empty() {
        mount_attr::add(&bound, attributes, recursive)?;
    }
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_api::proto::DiskExtent;

    fn volume(destination: &str, sub_path: &str) -> Mount {
        Mount {
            volume: "v".to_owned(),
            sub_path: sub_path.to_owned(),
            destination: destination.to_owned(),
            ..Mount::default()
        }
    }

    fn share(name: &str) -> Mount {
        Mount {
            volume: String::new(),
            share: name.to_owned(),
            ..volume("/d", "")
        }
    }

    fn image() -> DiskExtent {
        DiskExtent {
            device: "vda".to_owned(),
            offset: 0,
            length: 4096,
        }
    }

    fn field(mount: Mount) -> String {
        check(&[mount]).unwrap_err().into_wire().field
    }

    #[test]
    fn mounts_that_climb_are_refused() {
        for (destination, sub_path, want) in [
            ("data", "", "mounts[0].destination"),
            ("/a/../b", "", "mounts[0].destination"),
            ("//.", "", "mounts[0].destination"),
            ("/data", "../x", "mounts[0].sub_path"),
            ("/data", "/x", "mounts[0].sub_path"),
        ] {
            assert_eq!(field(volume(destination, sub_path)), want);
        }
    }

    #[test]
    fn exactly_one_source_is_wanted() {
        let mut two = volume("/d", "");
        two.share = "s".to_owned();
        assert_eq!(field(two), "mounts[0].volume");
        let mut two = volume("/d", "");
        two.image = Some(image());
        assert_eq!(field(two), "mounts[0].volume");
        assert_eq!(field(share("")), "mounts[0].volume");
        let mut of_image = share("");
        of_image.image = Some(image());
        let good = [volume("/d", "a/b"), share("s"), of_image];
        let wanted = check(&good).unwrap();
        assert!(matches!(
            wanted[..],
            [Wanted::Volume, Wanted::Share, Wanted::Image(_)]
        ));
    }

    #[test]
    fn a_share_is_one_name() {
        for name in [".", "..", "a/b", "/", "a\0", &"x".repeat(256)] {
            assert_eq!(field(share(name)), "mounts[0].share", "{name:?}");
        }
        check(&[share("..a")]).unwrap();
    }

    #[test]
    fn only_shares_follow_the_host() {
        let mut mount = volume("/d", "");
        mount.host_to_container = true;
        assert_eq!(field(mount), "mounts[0].host_to_container");
        let mut mount = share("s");
        mount.host_to_container = true;
        check(&[mount]).unwrap();
    }
}
