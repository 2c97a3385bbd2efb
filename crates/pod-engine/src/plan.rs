//! From a manifest to what the sandbox crate is asked for: pure.

use crate::images::Resolved;
use crate::manifest::{Container, Manifest, USER_NAMESPACE_IDS};
use crate::merge::{self, MergeError};
use crate::network;
use crate::record::PodRecord;
use crate::sizing::{self, Defaults, VmSize};
use sandbox::{
    ContainerSpec, Engine, IdRange, Medium, MountSource, MountSpec, PidNamespace, ResourceSpec,
    SandboxSpec, UserNamespace, VolumeSpec,
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

/// The sandbox with id `id`, the pod's `attempt`th.
pub(crate) fn sandbox(
    manifest: &Manifest,
    record: &PodRecord,
    id: &str,
    attempt: u32,
    size: VmSize,
    engine: Option<Engine>,
    with_network: bool,
) -> SandboxSpec {
    let pod = &record.pod;
    let hostname = hostname(manifest, &pod.name);
    SandboxSpec {
        id: id.to_owned(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: pod.uid.clone(),
        attempt,
        labels: BTreeMap::from([(POD_LABEL.to_owned(), pod.id.clone())]),
        annotations: BTreeMap::new(),
        network: with_network.then(|| network::wish(manifest)),
        host_aliases: network::host_aliases(manifest),
        hostname,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        engine,
        scratch_mib: None,
        share_process_namespace: manifest.spec.share_process_namespace,
        user_namespace: user_namespace(manifest),
        sysctls: BTreeMap::new(),
        shm_size: 0,
        volumes: volumes(manifest),
        shares: false,
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
    let own = manifest.spec.host_users == Some(false);
    own.then_some(UserNamespace {
        uids: range,
        gids: range,
    })
}

fn volumes(manifest: &Manifest) -> Vec<VolumeSpec> {
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
            })
        })
        .collect()
}

/// Instance `attempt` of a container.
pub(crate) fn container(
    manifest: &Manifest,
    container: &Container,
    attempt: u32,
    image: &Resolved,
    defaults: &Defaults,
    names: (&str, &Path),
) -> Result<ContainerSpec, MergeError> {
    let (pod_name, log_dir) = names;
    let hostname = hostname(manifest, pod_name);
    let context = &manifest.spec.security_context;
    let mut process = merge::process(container, context, &image.defaults, &hostname)?;
    process.oom_score_adj = 0;
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        // By id: the name may mean another image by now.
        image: image.id.clone(),
        process,
        mounts: container
            .volume_mounts
            .iter()
            .map(|mount| MountSpec {
                source: MountSource::Volume(mount.name.clone()),
                sub_path: mount.sub_path.clone(),
                destination: mount.mount_path.clone(),
                read_only: mount.read_only,
            })
            .collect(),
        readonly_rootfs: container.security_context.read_only_root_filesystem,
        privileged: container.security_context.privileged,
        resources: sizing::limits(container, defaults),
        log_path: log_file(log_dir, &container.name, attempt),
        stop_signal: image.stop_signal,
        pid_namespace: PidNamespace::Default,
        paths: None,
        devices: Vec::new(),
        caller_data: String::new(),
    })
}

/// The log of one instance of a container.
pub(crate) fn log_file(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(format!("{attempt}.log"))
}
