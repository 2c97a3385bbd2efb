//! Block volumes of a sandbox: files and block devices of the host, by path or by
//! descriptor, that its VM has as disks and its containers as devices or mounted
//! file systems.
//!
//! A volume is recorded before anything is done for it, and forgotten after all of
//! it is undone. The VM holds the descriptor, and with it the volume's lock, so that
//! neither outlives it; a daemon that starts undoes what was half done. What the
//! volume holds is looked at on the host (`format`), and mounted in the guest only.

mod format;
mod source;

pub use source::VolumeSource;

use crate::Inner;
use crate::error::{SandboxError, chain};
use crate::live::Live;
use crate::record::{BlockVolume, Sandbox, SandboxState, Step, VolumeState};
use crate::registry::{ContainerEntry, Entry};
use crate::spec::{
    BlockVolumeSpec, DeviceOf, DeviceSpec, DiskPath, FileSystem, IoLimits, MountSource, RateLimit,
    ShownAs,
};
use guest_api::proto::{
    AttachVolumeRequest, DetachVolumeRequest, ResizeVolumeRequest, client_message::Call,
};
use source::Opened;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use vm_launcher::Code;
use vm_spec::proto::{self as vmm, AttachDiskRequest};

/// Most block volumes of a sandbox.
const MAX_VOLUMES: usize = 256;
/// How long the guest's kernel may take to let go of a volume whose containers are
/// gone, and the pause between two looks.
const RELEASE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_millis(20));

/// Refuses a volume that no sandbox can have.
pub(crate) fn check(spec: &BlockVolumeSpec) -> Result<(), SandboxError> {
    let refuse = |message: String| Err(invalid(format!("{:?}: {message}", spec.name)));
    let bytes = spec.name.as_bytes();
    let label = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    if !(1..=63).contains(&bytes.len())
        || !bytes.iter().all(label)
        || spec.name.starts_with('-')
        || spec.name.ends_with('-')
    {
        return refuse("a volume's name is a DNS label".into());
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if spec.serial.len() > 64 || !spec.serial.bytes().all(word) {
        return refuse(
            "its serial number must be at most 64 letters, digits, '-', '_' and '.'".into(),
        );
    }
    check_limits(spec.limits)
}

fn check_limits(limits: IoLimits) -> Result<(), SandboxError> {
    let rates = [limits.bytes, limits.operations];
    let zero = |rate: &RateLimit| rate.per_second == 0 || rate.burst == 0;
    if rates.iter().flatten().any(zero) {
        return Err(invalid("a limit and its burst must be at least 1".into()));
    }
    Ok(())
}

fn invalid(message: String) -> SandboxError {
    SandboxError::Invalid {
        field: "block_volumes",
        message,
    }
}

fn problem(volume: &str, problem: impl Into<String>) -> SandboxError {
    SandboxError::Volume {
        volume: volume.to_owned(),
        problem: problem.into(),
    }
}

/// The VM of a sandbox that is Ready.
pub(crate) fn ready(entry: &Entry) -> Result<Arc<Live>, SandboxError> {
    let live = entry.require_live()?;
    let state = entry.record.read(|s| s.state);
    if state != SandboxState::Ready {
        return Err(entry.wrong_state(state, "Ready"));
    }
    Ok(live)
}

/// Attaches a volume; undoes all of it if that fails.
pub(crate) async fn attach(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    spec: BlockVolumeSpec,
    source: VolumeSource,
) -> Result<(), SandboxError> {
    check(&spec)?;
    let _turn = entry.volumes.lock().await;
    attach_locked(inner, entry, live, spec, source).await
}

/// [`attach`] for callers that hold the turn and have made the specification.
pub(crate) async fn attach_locked(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    spec: BlockVolumeSpec,
    source: VolumeSource,
) -> Result<(), SandboxError> {
    let name = spec.name.clone();
    let known = entry.record.read(|s| s.block_volume(&name).cloned());
    match known {
        Some(known) if known.state == VolumeState::Attached && known.spec == spec => return Ok(()),
        Some(_) => {
            return Err(problem(
                &name,
                "the sandbox has another volume of this name",
            ));
        }
        None => {}
    }
    let (volumes, others) = entry.record.read(|s| {
        let others = s.spec.volumes.iter().any(|v| v.name == name);
        (s.block_volumes.len(), others)
    });
    if others {
        return Err(problem(
            &name,
            "the sandbox has another volume of this name",
        ));
    }
    if volumes >= MAX_VOLUMES {
        let message = format!("the sandbox has {MAX_VOLUMES} block volumes; detach some");
        return Err(problem(&name, message));
    }
    let shown = source.to_string();
    let wanted = spec.clone();
    let opened = crate::blocking(&entry.id, move || source::open(&wanted, source)).await??;
    let record = BlockVolume {
        spec: spec.clone(),
        source: shown,
        state: VolumeState::Attaching,
        length: 0,
    };
    entry
        .record
        .update(|s| s.block_volumes.push(record))
        .await?;
    let made = make(inner, entry, live, &spec, opened).await;
    let Err(error) = made else {
        return Ok(());
    };
    if let Err(undo) = detach_locked(inner, entry, live, &name).await {
        tracing::error!(
            sandbox = entry.id,
            volume = name,
            error = chain(&undo),
            "a volume that could not be attached stays half attached"
        );
    }
    Err(error)
}

async fn make(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    spec: &BlockVolumeSpec,
    opened: Opened,
) -> Result<(), SandboxError> {
    let (opened, file_system) = prepare(entry, spec, opened).await?;
    let request = AttachDiskRequest {
        name: extent_name(&spec.name),
        read_only: spec.read_only,
        serial: spec.serial.clone(),
        limits: Some(limits(spec.limits)),
        ..AttachDiskRequest::default()
    };
    let attached = live.vmm.attach_volume(request, opened.file).await;
    let extent = live.or_death(attached).await?;
    let call = Call::AttachVolume(AttachVolumeRequest {
        name: spec.name.clone(),
        extent: Some(crate::vm_plan::disk_extent(&extent)),
        read_only: spec.read_only,
        serial: spec.serial.clone(),
        file_system: file_system.map(|kind| kind.to_string()).unwrap_or_default(),
        group: spec.group,
        group_on_mismatch_only: spec.group_change == fs_group::Policy::OnRootMismatch,
        directory: match spec.shown_as {
            ShownAs::Directory(top) => Some(crate::vm_plan::directory(top)),
            ShownAs::Device | ShownAs::FileSystem { .. } => None,
        },
        ..AttachVolumeRequest::default()
    });
    live.call("attach the volume", call, &inner.config.timeouts)
        .await?;
    set_state(
        entry,
        &spec.name,
        VolumeState::Attached,
        Some(extent.length),
    )
    .await
}

/// Makes the file system if one is missing and wanted; says which one is there.
async fn prepare(
    entry: &Arc<Entry>,
    spec: &BlockVolumeSpec,
    opened: Opened,
) -> Result<(Opened, Option<FileSystem>), SandboxError> {
    let (kind, make) = match spec.shown_as {
        ShownAs::Device => return Ok((opened.claimed(spec)?, None)),
        ShownAs::FileSystem { kind, make } => (kind, make),
        ShownAs::Directory(_) => (Some(FileSystem::Ext4), false),
    };
    let name = spec.name.clone();
    let look = move || format::look(&opened.file).map(|found| (opened, found));
    let looked = crate::blocking(&entry.id, look).await?;
    let (opened, found) = looked.map_err(|e| problem(&name, format!("it cannot be read: {e}")))?;
    let wanted = match format::decide(found, kind, make && !spec.read_only) {
        Ok(format::Decision::Mount(kind)) => return Ok((opened.claimed(spec)?, Some(kind))),
        Ok(format::Decision::Make(kind)) => kind,
        Err(message) => return Err(problem(&name, message)),
    };
    let state = VolumeState::Formatting(opened.id);
    set_state(entry, &name, state, None).await?;
    let volume = name.clone();
    let work = move || format::make(&opened.file, wanted).map(|()| opened);
    let made = crate::blocking(&entry.id, work).await?;
    let opened = made.map_err(|message| problem(&volume, message))?;
    set_state(entry, &name, VolumeState::Attaching, None).await?;
    Ok((opened.claimed(spec)?, Some(wanted)))
}

/// Detaches a volume that no container has.
pub(crate) async fn detach(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    name: &str,
) -> Result<(), SandboxError> {
    let _turn = entry.volumes.lock().await;
    if entry.record.read(|s| s.block_volume(name).is_none()) {
        return Ok(());
    }
    let user = entry.containers().into_iter().find(|container| {
        container.record.read(|c| {
            let mut mounts = c.spec.mounts.iter();
            let mut devices = c.spec.devices.iter();
            let device = Step::BlockDevice(name.to_owned());
            mounts.any(|m| matches!(&m.source, MountSource::Volume(v) if v == name))
                || devices.any(|d| d.of == DeviceOf::Volume && d.path == name)
                || c.steps.contains(&device)
        })
    });
    if let Some(user) = user {
        let message = format!("container {} has it; remove that first", user.id);
        return Err(problem(name, message));
    }
    detach_locked(inner, entry, live, name).await
}

/// Undoes what was done for a volume, however far that came.
async fn detach_locked(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    name: &str,
) -> Result<(), SandboxError> {
    set_state(entry, name, VolumeState::Detaching, None).await?;
    let deadline = Instant::now() + RELEASE.0;
    loop {
        let call = Call::DetachVolume(DetachVolumeRequest {
            name: name.to_owned(),
        });
        let limit = inner.config.timeouts.control;
        match live.call_within("detach the volume", call, limit).await {
            // It went with its VM.
            Ok(_) | Err(SandboxError::VmDied { .. }) => break,
            // The kernel is still busy with the end of those who had it.
            Err(SandboxError::Guest {
                code: Code::FailedPrecondition,
                ..
            }) if Instant::now() < deadline => tokio::time::sleep(RELEASE.1).await,
            Err(error) => return Err(error),
        }
    }
    if live.cause().is_none() {
        let extent = extent_name(name);
        let state = live.or_death(live.vmm.state().await).await;
        let attached = match state {
            Ok(state) => state.extents.iter().any(|e| e.name == extent),
            Err(SandboxError::VmDied { .. }) => false,
            Err(error) => return Err(error),
        };
        if attached {
            match live.or_death(live.vmm.detach_disk(&extent).await).await {
                Ok(()) | Err(SandboxError::VmDied { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    entry
        .record
        .update(|s| s.block_volumes.retain(|v| v.spec.name != name))
        .await
}

/// Lets the guest have what a volume has grown by; its bytes.
pub(crate) async fn resize(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    name: &str,
) -> Result<u64, SandboxError> {
    let _turn = entry.volumes.lock().await;
    require_attached(entry, name)?;
    let extent = live.vmm.resize_disk(&extent_name(name)).await;
    let length = live.or_death(extent).await?.length;
    let call = Call::ResizeVolume(ResizeVolumeRequest {
        name: name.to_owned(),
        length,
    });
    live.call("resize the volume", call, &inner.config.timeouts)
        .await?;
    set_state(entry, name, VolumeState::Attached, Some(length)).await?;
    Ok(length)
}

/// Changes what a volume may do.
pub(crate) async fn limit(
    entry: &Arc<Entry>,
    live: &Live,
    name: &str,
    wanted: IoLimits,
) -> Result<(), SandboxError> {
    check_limits(wanted)?;
    let _turn = entry.volumes.lock().await;
    require_attached(entry, name)?;
    let limited = live
        .vmm
        .limit_disk(&extent_name(name), limits(wanted))
        .await;
    live.or_death(limited).await?;
    entry
        .record
        .update(|s| {
            let volumes = s.block_volumes.iter_mut();
            for volume in volumes.filter(|v| v.spec.name == name) {
                volume.spec.limits = wanted;
            }
        })
        .await
}

/// Attaches a block device of the host for a container; the name of its volume.
pub(crate) async fn attach_device(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &ContainerEntry,
    live: &Live,
    device: &DeviceSpec,
) -> Result<String, SandboxError> {
    let at = DiskPath {
        path: PathBuf::from(&device.path),
        within: Vec::new(),
    };
    let path = at.path.clone();
    let numbers = crate::blocking(&entry.id, move || source::device_numbers(&path)).await??;
    let Some((major, minor)) = numbers else {
        let message = format!("{} is no block device of the host any more", device.path);
        return Err(invalid(message));
    };
    // Two guests' views of one device, so that the one that must not write cannot.
    let suffix = if device.read_only { "-ro" } else { "" };
    let name = format!("dev-{major}-{minor}{suffix}");
    let spec = BlockVolumeSpec {
        read_only: device.read_only,
        exclusive: false,
        ..BlockVolumeSpec::new(name.clone(), ShownAs::Device)
    };
    let _turn = entry.volumes.lock().await;
    item.record
        .update(|c| c.add_step(Step::BlockDevice(name.clone())))
        .await?;
    attach_locked(inner, entry, live, spec, VolumeSource::Path(at)).await?;
    Ok(name)
}

/// Takes a block device of the host away unless another container has it.
pub(crate) async fn detach_device(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &ContainerEntry,
    live: &Live,
    name: &str,
) -> Result<(), SandboxError> {
    let _turn = entry.volumes.lock().await;
    let step = Step::BlockDevice(name.to_owned());
    let others = entry.containers();
    let shared = others
        .iter()
        .any(|other| other.id != item.id && other.record.read(|c| c.steps.contains(&step)));
    if shared || entry.record.read(|s| s.block_volume(name).is_none()) {
        return Ok(());
    }
    detach_locked(inner, entry, live, name).await
}

/// Whether a file holds nothing, as far as is looked. Blocks.
pub(crate) fn is_blank(file: &File) -> io::Result<bool> {
    Ok(format::look(file)? == format::Found::Blank)
}

/// Whether a path leads to a block device of the host. Blocks.
pub fn is_block_device(path: &Path) -> bool {
    matches!(source::device_numbers(path), Ok(Some(_)))
}

/// Goes on with what a daemon that ended had begun. It needs the agent, so that it
/// goes on by itself.
pub(crate) fn recover(inner: &Arc<Inner>, entry: &Arc<Entry>, live: &Arc<Live>) {
    let half = |v: &BlockVolume| v.state != VolumeState::Attached;
    let names: Vec<String> = entry.record.read(|s| {
        let volumes = s.block_volumes.iter().filter(|v| half(v));
        volumes.map(|v| v.spec.name.clone()).collect()
    });
    if names.is_empty() {
        return;
    }
    let (inner, entry, live) = (Arc::clone(inner), Arc::clone(entry), Arc::clone(live));
    tokio::spawn(async move {
        let _turn = entry.volumes.lock().await;
        for name in names {
            if let Err(error) = detach_locked(&inner, &entry, &live, &name).await {
                tracing::error!(
                    sandbox = entry.id,
                    volume = name,
                    error = chain(&error),
                    "a volume stays half attached"
                );
            }
        }
    });
}

/// Volumes whose file system was being made when the daemon ended: blank again, so
/// that the next try makes one.
pub(crate) async fn wipe_half_formatted(sandbox: &Sandbox) {
    for volume in sandbox.block_volumes.clone() {
        let VolumeState::Formatting(id) = volume.state else {
            continue;
        };
        let name = volume.spec.name;
        let path = PathBuf::from(volume.source);
        let wiped = crate::blocking(&sandbox.spec.id, move || source::wipe_again(&path, id)).await;
        match wiped {
            Ok(Ok(())) => tracing::info!(volume = name, "its half-made file system was wiped"),
            Ok(Err(error)) => tracing::warn!(
                volume = name,
                error = chain(&error),
                "its file system may be half made; wipe it with wipefs"
            ),
            Err(error) => tracing::warn!(volume = name, error = chain(&error), "not looked at"),
        }
    }
}

fn require_attached(entry: &Entry, name: &str) -> Result<(), SandboxError> {
    let state = entry.record.read(|s| s.block_volume(name).map(|v| v.state));
    match state {
        Some(VolumeState::Attached) => Ok(()),
        Some(_) => Err(problem(name, "it is being attached or detached")),
        None => Err(problem(name, "the sandbox has no such block volume")),
    }
}

async fn set_state(
    entry: &Entry,
    name: &str,
    state: VolumeState,
    length: Option<u64>,
) -> Result<(), SandboxError> {
    entry
        .record
        .update(|s| {
            let volumes = s.block_volumes.iter_mut();
            for volume in volumes.filter(|v| v.spec.name == name) {
                volume.state = state;
                volume.length = length.unwrap_or(volume.length);
            }
        })
        .await
}

/// A volume's extent: images and the scratch disk have no '/' in theirs.
fn extent_name(volume: &str) -> String {
    format!("volume/{volume}")
}

fn limits(limits: IoLimits) -> vmm::IoLimits {
    let rate = |limit: Option<RateLimit>| {
        limit.map(|RateLimit { per_second, burst }| vmm::RateLimit { per_second, burst })
    };
    vmm::IoLimits {
        bytes: rate(limits.bytes),
        operations: rate(limits.operations),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_cannot_be_is_refused_by_name() {
        let good = BlockVolumeSpec {
            name: "data-1".into(),
            read_only: false,
            shown_as: ShownAs::Device,
            serial: "pv_1.a".into(),
            group: None,
            group_change: fs_group::Policy::default(),
            limits: IoLimits::default(),
            exclusive: true,
        };
        check(&good).unwrap();
        let changes: [fn(&mut BlockVolumeSpec); 6] = [
            |v| v.name = "../x".into(),
            |v| v.name = String::new(),
            |v| v.name = "a-".into(),
            |v| v.serial = "a/b".into(),
            |v| v.serial = "x".repeat(65),
            |v| {
                v.limits.bytes = Some(RateLimit {
                    per_second: 1,
                    burst: 0,
                });
            },
        ];
        for change in changes {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
