//! Volumes that an image's configuration asks for: the container's own, writable
//! where its root is not, on the disk of its writable layer and gone with it.
//!
//! What the image has at such a path shows through from below (an overlay):
//! nothing is copied before it is changed.

use super::mounts::{Planned, check_destination, open_directory};
use super::rootfs::Sources;
use super::{layer, rootfs};
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::rooted::{Escape, Missing, Rooted};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Most volumes of an image.
const MAX_VOLUMES: usize = 256;

/// Checks the volumes of a request.
pub(crate) fn check(paths: &[String]) -> Result<(), AgentError> {
    if paths.len() > MAX_VOLUMES {
        let problem = format!("more than {MAX_VOLUMES} volumes");
        return Err(AgentError::invalid("image_volumes", problem));
    }
    for (i, path) in paths.iter().enumerate() {
        check_destination(path, &field(i))?;
    }
    Ok(())
}

fn field(index: usize) -> String {
    format!("image_volumes[{index}]")
}

/// Makes the volumes as detached mounts, in the agent's tree; `image` is the image
/// as the pod's users see it.
pub(crate) fn plan(
    paths: &[String],
    image: &str,
    sources: &Sources,
) -> Result<Vec<Planned>, AgentError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let image = open_directory(image)?;
    let image = Rooted::new(image.as_fd(), Escape::Contain);
    let all = format!("{}/volumes", sources.layer);
    make_directory(&all)?;
    let mut planned = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let directory = format!("{all}/{i}");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mount = match image.open(path, flags) {
            Ok(below) => above(&below, &directory)?,
            Err(Errno::NOENT) => {
                make_directory(&directory)?;
                let (uid, gid) = sources.users.root();
                rustix::fs::chown(&directory, Some(uid), Some(gid))
                    .doing(|| format!("giving {directory} to the pod's users"))?;
                fs_mount::bind_path(&directory).doing(|| format!("binding {directory}"))?
            }
            Err(e) => {
                let problem = format!("the image's volume {path} cannot be opened in it: {e}");
                return Err(AgentError::invalid(field(i), problem));
            }
        };
        planned.push(Planned {
            mount,
            destination: path.clone(),
            missing: Missing::Directory,
            field: field(i),
        });
    }
    Ok(planned)
}

fn make_directory(path: &str) -> Result<(), AgentError> {
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdir(path, mode).doing(|| format!("making {path}"))
}

/// A writable layer in `directory` above the image's directory `below`.
fn above(below: &OwnedFd, directory: &str) -> Result<OwnedFd, AgentError> {
    let below = format!("/proc/self/fd/{}", below.as_raw_fd());
    layer::create_below(directory, &below)?;
    rootfs::overlay(&below, directory)
}
