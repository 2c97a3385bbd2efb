//! The checks of the API server, and those of a node whose pods are VMs.

mod network;

use super::names::{
    is_dns_label, is_dns_subdomain, is_label_value, is_port_name, is_qualified_name,
};
use super::{
    Container, FieldError, Manifest, Metadata, NodeLimits, PodSpec, Quantity, Resources,
    SecurityContext, USER_NAMESPACE_IDS, env, ephemeral, volumes,
};
use crate::sizing::EPHEMERAL_STORAGE;
use std::collections::BTreeSet;

/// Most containers of a pod, init and ephemeral containers included.
const MAX_CONTAINERS: usize = 256;
/// Most bytes of all annotations.
const MAX_ANNOTATIONS: usize = 256 << 10;
pub(super) const LABEL_FORM: &str =
    "must be a DNS label: at most 63 lower-case letters, digits and '-', none of these at the ends";
pub(super) const SUBDOMAIN_FORM: &str = "must be a DNS subdomain: at most 253 lower-case letters, digits, '-' \
     and '.', beginning and ending with a letter or digit";

/// Collects faults.
pub(crate) struct Faults<'a> {
    pub(crate) errors: &'a mut Vec<FieldError>,
    /// Of the pod's users and groups.
    pub(crate) greatest_id: u32,
}

impl Faults<'_> {
    pub(crate) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(path, message));
    }

    pub(crate) fn require(&mut self, holds: bool, path: &str, message: &str) {
        if !holds {
            self.add(path, message);
        }
    }
}

/// Adds every fault of `manifest` to `errors`.
pub(super) fn check(manifest: &Manifest, limits: &NodeLimits, errors: &mut Vec<FieldError>) {
    let greatest_id = match manifest.spec.host_users {
        Some(false) => USER_NAMESPACE_IDS - 1,
        _ => i32::MAX.cast_unsigned(),
    };
    let mut faults = Faults {
        errors,
        greatest_id,
    };
    metadata(&manifest.metadata, &mut faults);
    pod(&manifest.spec, &mut faults);
    network::check(manifest, limits, &mut faults);
    let mut names = BTreeSet::new();
    for (path, item) in manifest.all_containers() {
        let name = format!("{path}.name");
        if item.name.is_empty() {
            faults.add(&name, "required");
        } else if !is_dns_label(&item.name) {
            faults.add(&name, LABEL_FORM);
        } else if !names.insert(&item.name) {
            faults.add(
                &name,
                format!("{:?} is the name of another container", item.name),
            );
        }
        container(&path, item, &manifest.spec, &mut faults);
        resources(&path, &item.resources, limits, &mut faults);
    }
    ephemeral::check(&manifest.spec, &mut faults);
}

pub(crate) fn metadata(metadata: &Metadata, faults: &mut Faults<'_>) {
    match (metadata.name.as_str(), metadata.generate_name.as_str()) {
        ("", "") => faults.add("metadata.name", "required"),
        ("", prefix) => faults.require(
            is_dns_subdomain(prefix.trim_end_matches('-')) && prefix.len() <= 240,
            "metadata.generateName",
            SUBDOMAIN_FORM,
        ),
        (name, _) => faults.require(is_dns_subdomain(name), "metadata.name", SUBDOMAIN_FORM),
    }
    faults.require(
        metadata.namespace.is_empty() || is_dns_label(&metadata.namespace),
        "metadata.namespace",
        LABEL_FORM,
    );
    let uid = &metadata.uid;
    faults.require(
        uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        "metadata.uid",
        "must be at most 64 letters, digits and '-'",
    );
    for (key, value) in &metadata.labels {
        faults.require(
            is_qualified_name(key),
            "metadata.labels",
            &format!("{key:?} is no label name"),
        );
        faults.require(
            is_label_value(value),
            "metadata.labels",
            &format!("{value:?} is no label value: at most 63 letters, digits, '-', '_' and '.'"),
        );
    }
    for key in metadata.annotations.keys() {
        let known = is_qualified_name(&key.to_ascii_lowercase());
        faults.require(
            known,
            "metadata.annotations",
            &format!("{key:?} is no annotation name"),
        );
    }
    let bytes: usize = metadata
        .annotations
        .iter()
        .map(|(k, v)| k.len() + v.len())
        .sum();
    faults.require(
        bytes <= MAX_ANNOTATIONS,
        "metadata.annotations",
        "more than 256 KiB in all",
    );
}

fn pod(spec: &PodSpec, faults: &mut Faults<'_>) {
    faults.require(!spec.containers.is_empty(), "spec.containers", "required");
    let lists = [
        &spec.containers,
        &spec.init_containers,
        &spec.ephemeral_containers,
    ];
    let count: usize = lists.into_iter().map(Vec::len).sum();
    faults.require(
        count <= MAX_CONTAINERS,
        "spec.containers",
        &format!("{count} containers; a pod has at most {MAX_CONTAINERS}"),
    );
    faults.require(
        spec.hostname.is_empty() || is_dns_label(&spec.hostname),
        "spec.hostname",
        LABEL_FORM,
    );
    faults.require(
        spec.termination_grace_period_seconds
            .is_none_or(|s| (0..=i64::from(i32::MAX)).contains(&s)),
        "spec.terminationGracePeriodSeconds",
        "must be 0 or more seconds",
    );
    let context = &spec.security_context;
    let path = "spec.securityContext";
    ids(path, context.run_as_user, context.run_as_group, faults);
    for (i, gid) in context.supplemental_groups.iter().enumerate() {
        id(
            &format!("{path}.supplementalGroups[{i}]"),
            Some(*gid),
            faults,
        );
    }
    id(&format!("{path}.fsGroup"), context.fs_group, faults);
    let containers: Vec<&Container> = spec
        .containers
        .iter()
        .chain(&spec.init_containers)
        .collect();
    volumes::check(&spec.volumes, &containers, faults);
}

fn ids(path: &str, user: Option<i64>, group: Option<i64>, faults: &mut Faults<'_>) {
    id(&format!("{path}.runAsUser"), user, faults);
    id(&format!("{path}.runAsGroup"), group, faults);
}

fn id(path: &str, id: Option<i64>, faults: &mut Faults<'_>) {
    let greatest = faults.greatest_id;
    faults.require(
        id.is_none_or(|id| (0..=i64::from(greatest)).contains(&id)),
        path,
        &format!("must be between 0 and {greatest}"),
    );
}

fn container(path: &str, item: &Container, spec: &PodSpec, faults: &mut Faults<'_>) {
    let image = &item.image;
    if image.is_empty() {
        faults.add(format!("{path}.image"), "required");
    } else if image.len() > 512 || !image.bytes().all(|b| b.is_ascii_graphic()) {
        faults.add(format!("{path}.image"), "is no image reference");
    }
    let dir = &item.working_dir;
    faults.require(
        dir.is_empty() || dir.starts_with('/'),
        &format!("{path}.workingDir"),
        "must be an absolute path",
    );
    for (field, list) in [("command", &item.command), ("args", &item.args)] {
        for (i, text) in list.iter().enumerate() {
            no_nul(&format!("{path}.{field}[{i}]"), text, faults);
        }
    }
    no_nul(&format!("{path}.workingDir"), dir, faults);
    env::check(path, item, spec, faults);
    ports(path, item, faults);
    security(path, &item.security_context, faults);
    volumes::check_mounts(path, &item.volume_mounts, &spec.volumes, faults);
    volumes::check_devices(path, item, &spec.volumes, faults);
}

pub(super) fn no_nul(path: &str, text: &str, faults: &mut Faults<'_>) {
    faults.require(!text.contains('\0'), path, "must not contain a NUL byte");
}

fn ports(path: &str, item: &Container, faults: &mut Faults<'_>) {
    for (i, port) in item.ports.iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        faults.require(
            (1..=65535).contains(&port.container_port),
            &format!("{path}.containerPort"),
            "must be between 1 and 65535",
        );
        faults.require(
            port.name.is_empty() || is_port_name(&port.name),
            &format!("{path}.name"),
            "must be at most 15 lower-case letters, digits and '-', with a letter",
        );
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        faults.require(
            ["TCP", "UDP", "SCTP"].contains(&protocol),
            &format!("{path}.protocol"),
            "must be TCP, UDP or SCTP",
        );
    }
}

fn security(path: &str, context: &SecurityContext, faults: &mut Faults<'_>) {
    let path = format!("{path}.securityContext");
    ids(&path, context.run_as_user, context.run_as_group, faults);
    if context.allow_privilege_escalation == Some(false) {
        let sys_admin = context
            .capabilities
            .add
            .iter()
            .any(|c| c.strip_prefix("CAP_").unwrap_or(c) == "SYS_ADMIN");
        faults.require(
            !context.privileged && !sys_admin,
            &format!("{path}.allowPrivilegeEscalation"),
            "cannot be false for a privileged container or one with CAP_SYS_ADMIN",
        );
    }
    for (field, list) in [
        ("add", &context.capabilities.add),
        ("drop", &context.capabilities.drop),
    ] {
        for (i, name) in list.iter().enumerate() {
            if sandbox::capabilities::parse(name).is_none() {
                let message =
                    format!("{name:?} is no capability; write for example NET_ADMIN or ALL");
                faults.add(format!("{path}.capabilities.{field}[{i}]"), message);
            }
        }
    }
}

fn resources(path: &str, resources: &Resources, limits: &NodeLimits, faults: &mut Faults<'_>) {
    let path = format!("{path}.resources");
    for (kind, amounts) in [
        ("requests", &resources.requests),
        ("limits", &resources.limits),
    ] {
        for (name, amount) in amounts {
            let path = format!("{path}.{kind}.{name}");
            match name.as_str() {
                "cpu" | "memory" => {
                    faults.require(!amount.is_negative(), &path, "must not be negative");
                    too_much(&path, name, *amount, limits, faults);
                }
                EPHEMERAL_STORAGE => {
                    faults.require(!amount.is_negative(), &path, "must not be negative");
                    let most = sandbox::MAX_SCRATCH_MIB;
                    if amount.ceil().div_ceil(1 << 20) > most {
                        let message =
                            format!("{amount}: a pod's disk has at most {most} MiB; ask for less");
                        faults.add(&path, message);
                    }
                }
                _ => faults.add(&path, "not supported yet"),
            }
        }
    }
    for (name, request) in &resources.requests {
        if let Some(limit) = resources.limits.get(name)
            && request > limit
        {
            let message = format!("{request} is more than the limit of {limit}");
            faults.add(format!("{path}.requests.{name}"), message);
        }
    }
}

/// Amounts that no VM of this node can have.
fn too_much(
    path: &str,
    name: &str,
    amount: Quantity,
    limits: &NodeLimits,
    faults: &mut Faults<'_>,
) {
    if name == "cpu" {
        if amount.ceil() > u64::from(vm_spec::MAX_VCPUS) {
            let most = vm_spec::MAX_VCPUS;
            faults.add(
                path,
                format!("{amount}: a pod's VM has at most {most} vCPUs; ask for less"),
            );
        }
    } else if amount.ceil() >> 20 > limits.memory_mib {
        let most = limits.memory_mib;
        faults.add(
            path,
            format!("{amount}: this node gives a pod at most {most} MiB; ask for less or use a larger node"),
        );
    }
}
