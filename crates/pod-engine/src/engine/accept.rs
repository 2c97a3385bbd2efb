//! The first record of a pod, from its manifest.

use super::now_ns;
use crate::manifest::Manifest;
use crate::record::{ContainerStatus, Phase, Pod, PodRecord, Vm, Wanted};
use crate::sizing::VmSize;
use sandbox::Engine;

/// 32 hexadecimal digits in the form of a UUID.
pub(crate) fn uuid(id: &str) -> String {
    let parts = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]];
    parts.join("-")
}

/// A pod that was just accepted; `text` is its manifest as JSON.
pub(crate) fn new_record(
    manifest: &Manifest,
    text: String,
    engine: Option<Engine>,
    size: VmSize,
) -> PodRecord {
    let id = sandbox::new_id();
    let metadata = &manifest.metadata;
    let or = |text: &str, other: String| {
        if text.is_empty() {
            other
        } else {
            text.to_owned()
        }
    };
    let uid = uuid(&id);
    let statuses = |containers: &[crate::manifest::Container]| {
        containers
            .iter()
            .map(|c| ContainerStatus::new(&c.name, &c.image))
            .collect()
    };
    PodRecord {
        pod: Pod {
            namespace: or(&metadata.namespace, "default".to_owned()),
            name: or(
                &metadata.name,
                format!("{}{}", metadata.generate_name, &id[..5]),
            ),
            uid: or(&metadata.uid, uid),
            id,
            labels: metadata.labels.clone(),
            annotations: metadata.annotations.clone(),
            phase: Phase::Pending,
            reason: String::new(),
            message: String::new(),
            created_at_ns: now_ns(),
            started_at_ns: 0,
            finished_at_ns: 0,
            engine,
            init_containers: statuses(&manifest.spec.init_containers),
            containers: statuses(&manifest.spec.containers),
            ephemeral_containers: Vec::new(),
            vm: Some(Vm {
                vcpus: size.vcpus,
                memory_mib: size.memory_mib,
                vmm_pid: 0,
            }),
            pod_ips: Vec::new(),
            stages: Vec::new(),
            manifest: text,
        },
        wanted: Wanted::Run,
        sandbox_id: None,
        attempts: 0,
        sandbox_backoff_ms: 0,
        sandbox_not_before_ns: 0,
    }
}
