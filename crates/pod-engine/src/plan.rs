//! From a manifest to what the sandbox crate is asked for: pure.

use crate::env::Vars;
use crate::facts::Facts;
use crate::images::Resolved;
use crate::manifest::{Container, Manifest, USER_NAMESPACE_IDS, Volume};
use crate::merge::{self, MergeError};
use crate::network;
use crate::sizing::{self, Defaults};
use crate::volumes::fs_group;
use sandbox::{
    ContainerSpec, DeviceSpec, IdRange, MAX_VOLUME_BAYS, Medium, MountSpec, PathVolume,
    PidNamespace, ResourceSpec, SandboxSpec, UserNamespace, VolumeSpec,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Label of our sandboxes: the pod's id.
pub(crate) const POD_LABEL: &str = "spherule.dev/pod-id";

/// The pod's host name: its own, otherwise its name, cut to a DNS label.
pub(crate) fn hostname(manifest: &Manifest, name: &str) -> String {
    let wanted = match manifest.spec.hostname.as_str() {
        "" => name,
        own => own,
    };
    let cut: String = wanted.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The sandbox with id `id`, the pod's `attempt`th, whose VM has `disks`.
pub(crate) fn sandbox(
    facts: &Facts<'_>,
    id: &str,
    attempt: u32,
    with_network: bool,
    disks: Vec<PathVolume>,
) -> SandboxSpec {
    let Facts {
        pod,
        manifest,
        size,
        scratch_mib,
    } = *facts;
    let is_disk = |volume: &Volume| disks.iter().any(|disk| disk.volume.name == volume.name);
    let mut volumes_on_host = manifest.spec.volumes.iter().filter(|v| is_on_host(v));
    let hostname = hostname(manifest, &pod.name);
    SandboxSpec {
        id: id.to_owned(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: pod.uid.clone(),
        attempt,
        labels: BTreeMap::from([(POD_LABEL.to_owned(), pod.id.clone())]),
        annotations: BTreeMap::new(),
        network: with_network.then(|| network::wish(manifest, &hostname)),
        host_aliases: network::host_aliases(manifest),
        hostname,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        engine: pod.engine,
        scratch_mib: Some(scratch_mib),
        cgroup_parent: String::new(),
        share_process_namespace: manifest.spec.share_process_namespace,
        user_namespace: user_namespace(manifest),
        sysctls: BTreeMap::new(),
        shm_size: 0,
        volumes: volumes(manifest),
        shares: volumes_on_host.any(|volume| !is_disk(volume)),
        empty_dirs_inside: false,
        // One each, as far as there are so many.
        volume_bays: u32::try_from(disks.len())
            .unwrap_or(MAX_VOLUME_BAYS)
            .min(MAX_VOLUME_BAYS),
        block_volumes: disks,
        dns: network::dns(manifest),
        resources: ResourceSpec::default(),
        caller_data: String::new(),
    }
}

/// With `hostUsers: false` root is none in the guest either. Each pod has a
/// kernel of its own, so that all can have the same ids.
fn user_namespace(manifest: &Manifest) -> Option<UserNamespace> {
    let range = IdRange {
        first: USER_NAMESPACE_IDS,
        count: USER_NAMESPACE_IDS,
    };
    has_user_namespace(manifest).then_some(UserNamespace {
        uids: range,
        gids: range,
    })
}

pub(crate) fn has_user_namespace(manifest: &Manifest) -> bool {
    manifest.spec.host_users == Some(false)
}

/// Whether a volume is a directory or file of the host, not of the guest.
fn is_on_host(volume: &Volume) -> bool {
    volume.empty_dir.is_none() && volume.image.is_none()
}

fn volumes(manifest: &Manifest) -> Vec<VolumeSpec> {
    // Disks of the guest hold the guest's ids.
    let first = match has_user_namespace(manifest) {
        true => USER_NAMESPACE_IDS,
        false => 0,
    };
    let group = fs_group(&manifest.spec.security_context).map(|group| first + group);
    let volumes = manifest.spec.volumes.iter();
    volumes
        .filter_map(|volume| {
            let dir = volume.empty_dir.as_ref()?;
            Some(VolumeSpec {
                name: volume.name.clone(),
                medium: match dir.medium.as_str() {
                    "Memory" => Medium::Memory,
                    _ => Medium::Scratch,
                },
                size_limit: dir.size_limit.map_or(0, |limit| limit.ceil()),
                group,
            })
        })
        .collect()
}

/// What an instance of a container is made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) manifest: &'a Manifest,
    pub(crate) container: &'a Container,
    /// Counts its instances, from 0.
    pub(crate) attempt: u32,
    pub(crate) image: &'a Resolved,
    /// Its own variables.
    pub(crate) vars: &'a Vars,
    pub(crate) mounts: Vec<MountSpec>,
    pub(crate) devices: Vec<DeviceSpec>,
    /// Which processes it sees.
    pub(crate) pid_namespace: PidNamespace,
    pub(crate) pod_name: &'a str,
    pub(crate) log_dir: &'a Path,
}

/// An instance of a container.
pub(crate) fn container(
    parts: Parts<'_>,
    defaults: &Defaults,
) -> Result<ContainerSpec, MergeError> {
    let (container, image) = (parts.container, parts.image);
    let hostname = hostname(parts.manifest, parts.pod_name);
    let context = &parts.manifest.spec.security_context;
    let mut process = merge::process(container, context, &image.defaults, parts.vars, &hostname)?;
    process.oom_score_adj = 0;
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt: parts.attempt,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        // By id: the name may mean another image by now.
        image: image.id.clone(),
        process,
        mounts: parts.mounts,
        readonly_rootfs: container.security_context.read_only_root_filesystem,
        privileged: container.security_context.privileged,
        writable_layer_max: sizing::writable_layer_max(container),
        resources: sizing::limits(container, defaults),
        log_path: log_file(parts.log_dir, &container.name, parts.attempt),
        stop_signal: image.stop_signal,
        pid_namespace: parts.pid_namespace,
        paths: None,
        devices: parts.devices,
        caller_data: String::new(),
    })
}

/// The log of one instance of a container.
pub(crate) fn log_file(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(format!("{attempt}.log"))
}
