//! The part of `v1.Pod` that is honoured. What is not here is refused by path.

use super::{EnvFrom, EnvVar, Volume};
use quantity::Quantity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A pod manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// "v1".
    #[serde(default)]
    pub api_version: String,
    /// "Pod".
    #[serde(default)]
    pub kind: String,
    /// Name, namespace, labels.
    #[serde(default)]
    pub metadata: Metadata,
    /// What to run.
    pub spec: PodSpec,
}

/// `metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "fields are documented by Kubernetes")]
pub struct Metadata {
    pub name: String,
    pub generate_name: String,
    pub namespace: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// `spec`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "fields are documented by Kubernetes")]
pub struct PodSpec {
    pub containers: Vec<Container>,
    #[serde(default)]
    pub init_containers: Vec<Container>,
    #[serde(default)]
    pub ephemeral_containers: Vec<Container>,
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    #[serde(default)]
    pub termination_grace_period_seconds: Option<i64>,
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    pub share_process_namespace: bool,
    #[serde(default)]
    pub host_users: Option<bool>,
    #[serde(default)]
    pub security_context: PodSecurityContext,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    #[serde(default)]
    pub dns_policy: DnsPolicy,
    #[serde(default)]
    pub dns_config: Option<DnsConfig>,
    #[serde(default)]
    pub host_aliases: Vec<HostAlias>,
}

/// `spec.dnsPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum DnsPolicy {
    /// As Default: there is no cluster.
    #[default]
    ClusterFirst,
    /// As Default.
    ClusterFirstWithHostNet,
    /// As the network or the node has it, and `dnsConfig`.
    Default,
    /// `dnsConfig` alone.
    None,
}

/// `spec.dnsConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<DnsOption>,
}

/// `spec.dnsConfig.options`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct DnsOption {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub value: Option<String>,
}

/// `spec.hostAliases`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct HostAlias {
    #[serde(default)]
    pub ip: String,
    #[serde(default)]
    pub hostnames: Vec<String>,
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    /// Whenever a container ends.
    #[default]
    Always,
    /// When it ends badly.
    OnFailure,
    /// Never.
    Never,
}

/// A container, init container or ephemeral container.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "fields are documented by Kubernetes")]
pub struct Container {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub image: String,
    #[serde(default)]
    pub image_pull_policy: Option<ImagePullPolicy>,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub working_dir: String,
    #[serde(default)]
    pub env: Vec<EnvVar>,
    #[serde(default)]
    pub env_from: Vec<EnvFrom>,
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub security_context: SecurityContext,
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
    #[serde(default)]
    pub volume_devices: Vec<VolumeDevice>,
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub tty: bool,
    /// Of an ephemeral container only.
    #[serde(default)]
    pub target_container_name: String,
}

/// `volumeDevices`: a claim's volume of the mode Block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct VolumeDevice {
    pub name: String,
    pub device_path: String,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub enum ImagePullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// A port the container listens on: for information, as in Kubernetes, but for
/// its port on the node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ContainerPort {
    pub container_port: i64,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub protocol: Option<String>,
    #[serde(default)]
    pub host_port: i64,
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

/// `resources`: amounts by resource name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct Resources {
    #[serde(default)]
    pub requests: BTreeMap<String, Quantity>,
    #[serde(default)]
    pub limits: BTreeMap<String, Quantity>,
}

/// `spec.securityContext`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct PodSecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    pub supplemental_groups: Vec<i64>,
    pub fs_group: Option<i64>,
    pub fs_group_change_policy: fs_group::Policy,
}

/// `securityContext` of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct SecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: Option<bool>,
    pub privileged: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub read_only_root_filesystem: bool,
    pub capabilities: Capabilities,
}

/// `capabilities`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

/// `emptyDir`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct EmptyDir {
    pub medium: String,
    pub size_limit: Option<Quantity>,
}

/// `volumeMounts`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct VolumeMount {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub mount_path: String,
    #[serde(default)]
    pub sub_path: String,
    #[serde(default)]
    pub sub_path_expr: String,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub mount_propagation: Option<MountPropagation>,
    #[serde(default)]
    pub recursive_read_only: Option<RecursiveReadOnly>,
}

/// `mountPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub enum MountPropagation {
    None,
    HostToContainer,
    Bidirectional,
}

/// `recursiveReadOnly`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub enum RecursiveReadOnly {
    Disabled,
    IfPossible,
    Enabled,
}

impl Manifest {
    /// All containers with the path of each, the init containers first, the
    /// ephemeral ones last.
    pub(crate) fn all_containers(&self) -> impl Iterator<Item = (String, &Container)> {
        let spec = &self.spec;
        let lists = [
            ("initContainers", &spec.init_containers),
            ("containers", &spec.containers),
            ("ephemeralContainers", &spec.ephemeral_containers),
        ];
        lists.into_iter().flat_map(|(list, containers)| {
            let numbered = containers.iter().enumerate();
            numbered.map(move |(i, c)| (format!("spec.{list}[{i}]"), c))
        })
    }

    /// Time its containers get to end, in milliseconds.
    pub(crate) fn grace_ms(&self) -> u64 {
        let seconds = self.spec.termination_grace_period_seconds.unwrap_or(30);
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
    }
}
