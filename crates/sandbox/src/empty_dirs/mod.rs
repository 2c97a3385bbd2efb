//! A kubelet's emptyDirs within the VM.
//!
//! They come as directories of the host, but are the pod's alone. So their bytes need
//! not go by a shared file system: medium Memory is a tmpfs of the guest; others are a
//! disk, whose file lies in the emptyDir itself. There the kubelet's own look at the
//! directory (du, or a project quota) sees what the disk takes, so that its figures
//! and its evictions by sizeLimit stay true, and the file goes when the directory does.
//! It outlives the VM: the pod's next sandbox has it again.
//!
//! Where the directory holds anything else, somebody of the host means the pod to see
//! it, and it is shared as any other. What was decided for a sandbox's first container
//! holds for all of them.

mod disk;
mod recognise;

use crate::Inner;
use crate::error::SandboxError;
use crate::live::Live;
use crate::record::{EmptyDirPlace, Step, VolumeState};
use crate::registry::{ContainerEntry, Entry};
use crate::spec::{BlockVolumeSpec, DirectorySpec, HostMount, ShownAs};
use crate::vm_plan::{Mounted, directory};
use crate::volumes::{self, VolumeSource};
use guest_api::proto::{AttachVolumeRequest, client_message::Call};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// An emptyDir, and what of it a mount shows.
#[derive(Debug)]
struct EmptyDir {
    /// What the VM knows it by: a DNS label, the same for all its mounts.
    name: String,
    /// Where it truly is.
    path: PathBuf,
    dir: OwnedFd,
    /// Relative; empty: all of it.
    sub_path: String,
    medium: Medium,
    /// As the kubelet made it (fsGroup).
    top: DirectorySpec,
}

#[derive(Debug, Clone, Copy)]
enum Medium {
    /// A disk of that size.
    Disk { mib: u64 },
    /// A tmpfs of that size.
    Memory { bytes: u64 },
}

/// Puts the emptyDir that a mount shows into the VM, for this container; `None` if the
/// mount shows anything else, or is to be shared.
pub(crate) async fn attach(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &ContainerEntry,
    live: &Live,
    mount: &HostMount,
) -> Result<Option<Mounted>, SandboxError> {
    let spec = entry
        .record
        .read(|s| (s.spec.empty_dirs_inside, s.spec.uid.clone()));
    let (true, uid) = spec else {
        return Ok(None);
    };
    let path = mount.path.clone();
    let found = crate::blocking(&entry.id, move || recognise::find(&path, &uid)).await??;
    let Some(volume) = found else {
        return Ok(None);
    };
    let mounted = Mounted::Inside {
        volume: volume.name.clone(),
        sub_path: volume.sub_path.clone(),
    };
    let _turn = entry.volumes.lock().await;
    let inside = match volume.medium {
        Medium::Disk { mib } => attach_disk(inner, entry, item, live, volume, mib).await?,
        Medium::Memory { bytes } => attach_memory(inner, entry, live, volume, bytes).await?,
    };
    Ok(inside.then_some(mounted))
}

async fn attach_disk(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &ContainerEntry,
    live: &Live,
    volume: EmptyDir,
    mib: u64,
) -> Result<bool, SandboxError> {
    let name = volume.name.clone();
    let attached = entry.record.read(|s| {
        let known = s.block_volume(&name);
        known.is_some_and(|v| v.state == VolumeState::Attached)
    });
    let step = Step::BlockDevice(name.clone());
    if attached {
        item.record.update(|c| c.add_step(step)).await?;
        return Ok(true);
    }
    if place(entry, &name) == Some(EmptyDirPlace::Shared) {
        return Ok(false);
    }
    let root = inner.config.root.clone();
    let spec = BlockVolumeSpec::new(name, ShownAs::Directory(volume.top));
    let path = volume.path.clone();
    let open = move || disk::open_or_make(&root, &volume, mib);
    let Some(file) = crate::blocking(&entry.id, open).await?? else {
        decide(entry, spec.name, EmptyDirPlace::Shared).await?;
        return Ok(false);
    };
    item.record.update(|c| c.add_step(step)).await?;
    let source = VolumeSource::Found(file, path);
    volumes::attach_locked(inner, entry, live, spec, source).await?;
    Ok(true)
}

async fn attach_memory(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    volume: EmptyDir,
    bytes: u64,
) -> Result<bool, SandboxError> {
    let place = match place(entry, &volume.name) {
        Some(place) => place,
        None => {
            let (dir, path) = (volume.dir, volume.path);
            let look = move || disk::is_untouched(&dir, &path);
            let place = match crate::blocking(&entry.id, look).await?? {
                true => EmptyDirPlace::Memory,
                false => EmptyDirPlace::Shared,
            };
            decide(entry, volume.name.clone(), place).await?;
            place
        }
    };
    if place == EmptyDirPlace::Shared {
        return Ok(false);
    }
    // Asked for by each container that has it: the agent makes it once.
    let call = Call::AttachVolume(AttachVolumeRequest {
        name: volume.name,
        file_system: "tmpfs".to_owned(),
        size: bytes,
        directory: Some(directory(volume.top)),
        ..AttachVolumeRequest::default()
    });
    let what = "make an emptyDir in memory";
    live.call(what, call, &inner.config.timeouts).await?;
    Ok(true)
}

fn place(entry: &Entry, name: &str) -> Option<EmptyDirPlace> {
    entry.record.read(|s| s.empty_dirs.get(name).copied())
}

async fn decide(entry: &Entry, name: String, place: EmptyDirPlace) -> Result<(), SandboxError> {
    entry
        .record
        .update(|s| {
            s.empty_dirs.insert(name, place);
        })
        .await
}
