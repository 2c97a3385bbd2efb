//! RunPodSandbox.
//!
//! Kept without effect: the users, groups and filters of the sandbox's security
//! context. They are for a process that is not there: no pause container runs.

use crate::error::CriError;
use crate::record::keep_sandbox;
use crate::resources::to_spec;
use crate::service::RuntimeServer;
use crate::{Config, dns, mounts, namespaces, network, security, sizing};
use cri_api::v1::{
    PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest, RunPodSandboxResponse,
};
use sandbox::{NetworkSpec, ResourceSpec, SandboxSpec, Sandboxes, new_id};
use std::collections::{BTreeMap, HashMap};

/// Label by which our own pod engine knows its sandboxes; not for clients.
const ENGINE_LABEL: &str = "spherule.dev/pod-id";
/// Longest host name the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// RunPodSandbox: answers when the guest takes containers. A caller that goes
/// away meanwhile leaves nothing behind.
pub(crate) async fn run_pod_sandbox(
    server: &RuntimeServer,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, CriError> {
    let handler = request.runtime_handler;
    let config = request
        .config
        .ok_or_else(|| CriError::invalid("config", "required"))?;
    let limit_mib = pod_limit(&config).await?;
    let mut spec = convert(&new_id(), &config, &handler, &server.config, limit_mib)?;
    if let Some(network) = &mut spec.network {
        network.capabilities.ip_ranges = server.pod_ranges.get();
    }
    let id = spec.id.clone();
    let mut unfinished = Unfinished {
        sandboxes: server.sandboxes.clone(),
        id: Some(id.clone()),
    };
    let result = server.sandboxes.run_sandbox(spec).await;
    // It is there, or the sandbox crate has undone it.
    unfinished.id = None;
    result?;
    Ok(RunPodSandboxResponse { pod_sandbox_id: id })
}

/// Removes what nobody waits for any more.
struct Unfinished {
    sandboxes: Sandboxes,
    id: Option<String>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let sandboxes = self.sandboxes.clone();
        tokio::spawn(async move {
            tracing::info!(sandbox = id, "its caller went away; removing it");
            if let Err(error) = sandboxes.remove_sandbox(&id).await {
                tracing::warn!(sandbox = id, %error, "could not be removed");
            }
        });
    }
}

fn invalid(field: &str, message: impl Into<String>) -> CriError {
    CriError::invalid(format!("config.{field}"), message)
}

/// The memory in MiB to which the node limits all of the pod.
async fn pod_limit(config: &PodSandboxConfig) -> Result<Option<u64>, CriError> {
    let parent = cgroup_parent(config)?;
    if parent.is_empty() {
        return Ok(None);
    }
    let read = tokio::task::spawn_blocking(move || sandbox::memory_limit_mib(&parent));
    Ok(read.await.unwrap_or(None))
}

/// The pod's cgroup, relative to the hierarchies' roots.
fn cgroup_parent(config: &PodSandboxConfig) -> Result<String, CriError> {
    let parent = config.linux.as_ref().map(|linux| &linux.cgroup_parent);
    let parent = parent.map_or("", |parent| parent.trim_matches('/'));
    let sound = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if !parent.is_empty() && !parent.split('/').all(sound) {
        let message = format!("{parent:?} is no path of a cgroup");
        return Err(invalid("linux.cgroup_parent", message));
    }
    Ok(parent.to_owned())
}

/// The sandbox with id `id`; `limit_mib`: of [`pod_limit`].
pub(crate) fn convert(
    id: &str,
    config: &PodSandboxConfig,
    handler: &str,
    settings: &Config,
    limit_mib: Option<u64>,
) -> Result<SandboxSpec, CriError> {
    if !settings.has_handler(handler) {
        return Err(CriError::invalid(
            "runtime_handler",
            format!(
                "no runtime for {handler:?} is configured; the handlers are \"\", {}",
                settings.handlers.join(", ")
            ),
        ));
    }
    let metadata = metadata(config)?;
    if config.windows.is_some() {
        return Err(invalid("windows", "this node runs Linux pods only"));
    }
    if !config.log_directory.is_empty() {
        mounts::absolute("config.log_directory", &config.log_directory)?;
    }
    let network = network(config, settings)?;
    let linux = config.linux.as_ref();
    let context = "config.linux.security_context";
    let security = linux.and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.clone());
    if let Some(security) = security {
        security::check_sandbox(context, security)?;
    }
    let own = namespaces::of_sandbox(context, &options.unwrap_or_default())?;
    let size = sizing::vm_size(linux, settings, limit_mib)?;
    for (name, limits) in [
        (
            "resources",
            linux.and_then(|linux| linux.resources.as_ref()),
        ),
        ("overhead", linux.and_then(|linux| linux.overhead.as_ref())),
    ] {
        // They size the VM; each container has its own inside.
        to_spec(
            &format!("config.linux.{name}"),
            &limits.cloned().unwrap_or_default(),
            size.vcpus,
        )?;
    }
    let hostname = hostname(config, metadata)?;
    Ok(SandboxSpec {
        id: id.to_owned(),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        attempt: metadata.attempt,
        labels: labels(&config.labels),
        annotations: BTreeMap::new(),
        network,
        host_aliases: Vec::new(),
        hostname,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        engine: None,
        scratch_mib: None,
        cgroup_parent: cgroup_parent(config)?,
        share_process_namespace: own.share_process_namespace,
        user_namespace: own.user_namespace,
        sysctls: sysctls(linux.map(|linux| &linux.sysctls))?,
        shm_size: 0,
        volumes: Vec::new(),
        shares: true,
        empty_dirs_inside: settings.empty_dirs_inside,
        // Which devices its containers will have is not known yet.
        block_volumes: Vec::new(),
        volume_bays: 1,
        dns: dns::dns(config.dns_config.as_ref())?,
        resources: ResourceSpec::default(),
        caller_data: keep_sandbox(config, handler),
    })
}

fn metadata(config: &PodSandboxConfig) -> Result<&PodSandboxMetadata, CriError> {
    let metadata = config.metadata.as_ref();
    let metadata = metadata.ok_or_else(|| invalid("metadata", "required"))?;
    for (name, value) in [
        ("name", &metadata.name),
        ("namespace", &metadata.namespace),
        ("uid", &metadata.uid),
    ] {
        if value.is_empty() {
            return Err(invalid(&format!("metadata.{name}"), "required"));
        }
    }
    Ok(metadata)
}

/// For the sandbox crate's own records.
pub(crate) fn labels(given: &HashMap<String, String>) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = given.clone().into_iter().collect();
    labels.remove(ENGINE_LABEL);
    labels
}

/// The wish for a network, where the node gives any.
fn network(config: &PodSandboxConfig, settings: &Config) -> Result<Option<NetworkSpec>, CriError> {
    let wish = network::wish(config)?;
    if settings.network {
        return Ok(Some(wish));
    }
    if !wish.capabilities.port_mappings.is_empty() {
        let message = "a host port needs a network, and this node's pods have their loopback only \
                       (spherule serve --network none)";
        return Err(invalid("port_mappings", message));
    }
    Ok(None)
}

/// The name asked for, otherwise the pod's, cut to a DNS label.
fn hostname(config: &PodSandboxConfig, metadata: &PodSandboxMetadata) -> Result<String, CriError> {
    let asked = config.hostname.as_str();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if asked.is_empty() {
        let cut = metadata.name.chars().filter(|c| allowed(*c)).take(63);
        let cut: String = cut.collect();
        let cut = cut.trim_matches(['-', '.']);
        return Ok(if cut.is_empty() { "pod" } else { cut }.to_owned());
    }
    if asked.len() > MAX_HOSTNAME || !asked.chars().all(allowed) {
        let message = format!("{asked:?} must be 1 to 64 letters, digits, '-' and '.'");
        return Err(invalid("hostname", message));
    }
    Ok(asked.to_owned())
}

/// Kernel parameters: the guest's kernel is the pod's own, so that any can be
/// set that it has.
fn sysctls(given: Option<&HashMap<String, String>>) -> Result<BTreeMap<String, String>, CriError> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
    let valid = |name: &str| {
        !name.is_empty()
            && name.chars().all(word)
            && name.split(['/', '.']).all(|part| !part.is_empty())
    };
    let given = given.into_iter().flatten();
    given
        .map(|(name, value)| {
            if !valid(name) || value.contains(['\0', '\n']) {
                let message = format!("{name:?} = {value:?} is no kernel parameter");
                return Err(invalid("linux.sysctls", message));
            }
            Ok((name.clone(), value.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri_api::v1::{
        DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
        NamespaceOption, PortMapping, WindowsPodSandboxConfig,
    };

    fn config() -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                uid: "u-1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            ..PodSandboxConfig::default()
        }
    }

    fn converted(config: &PodSandboxConfig) -> Result<SandboxSpec, CriError> {
        convert("a1", config, "", &Config::new("0", 4096), None)
    }

    fn refused(change: impl FnOnce(&mut PodSandboxConfig), field: &str) {
        let mut config = config();
        change(&mut config);
        let error = converted(&config).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field}:")), "{error}");
    }

    fn linux(change: impl FnOnce(&mut LinuxPodSandboxConfig)) -> Option<LinuxPodSandboxConfig> {
        let mut linux = LinuxPodSandboxConfig::default();
        change(&mut linux);
        Some(linux)
    }

    #[test]
    fn least_request_is_enough() {
        let spec = converted(&config()).unwrap();
        assert_eq!((spec.name.as_str(), spec.attempt), ("web", 2));
        assert_eq!(spec.hostname, "web");
        assert!(spec.network.unwrap().capabilities.port_mappings.is_empty());
        assert!(spec.share_process_namespace);
        assert_eq!(spec.dns, sandbox::DnsSpec::default());
    }

    #[test]
    fn whole_request_is_converted() {
        let full = PodSandboxConfig {
            hostname: "host".into(),
            labels: [
                ("app".to_owned(), "x".to_owned()),
                (ENGINE_LABEL.to_owned(), "spoofed".to_owned()),
            ]
            .into(),
            dns_config: Some(DnsConfig {
                servers: vec!["1.1.1.1".into()],
                ..DnsConfig::default()
            }),
            linux: linux(|l| {
                l.sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
                l.resources = Some(LinuxContainerResources {
                    memory_limit_in_bytes: 1 << 30,
                    ..LinuxContainerResources::default()
                });
                l.security_context = Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: 1,
                        ..NamespaceOption::default()
                    }),
                    ..LinuxSandboxSecurityContext::default()
                });
            }),
            ..config()
        };
        let spec = converted(&full).unwrap();
        assert_eq!(spec.hostname, "host");
        assert_eq!(spec.labels, BTreeMap::from([("app".into(), "x".into())]));
        assert_eq!(spec.dns.servers, ["1.1.1.1"]);
        assert_eq!(spec.sysctls["net.ipv4.ip_forward"], "1");
        assert_eq!(spec.memory_mib, 1024 + 64);
        assert!(!spec.share_process_namespace);
    }

    #[test]
    fn malformed_requests_are_refused_by_field() {
        refused(|c| c.metadata = None, "config.metadata");
        refused(
            |c| c.metadata.as_mut().unwrap().uid.clear(),
            "config.metadata.uid",
        );
        refused(|c| c.hostname = "a b".into(), "config.hostname");
        refused(|c| c.hostname = "x".repeat(65), "config.hostname");
        refused(|c| c.log_directory = "logs".into(), "config.log_directory");
        refused(
            |c| c.windows = Some(WindowsPodSandboxConfig::default()),
            "config.windows",
        );
        for name in ["", "../x", "a..b", "a\n", "kernel.", "a b"] {
            let bad = linux(|l| l.sysctls = [(name.to_owned(), "1".to_owned())].into());
            refused(|c| c.linux = bad, "config.linux.sysctls");
        }
        let node = linux(|l| {
            l.security_context = Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption {
                    network: 2,
                    ..NamespaceOption::default()
                }),
                ..LinuxSandboxSecurityContext::default()
            });
        });
        let field = "config.linux.security_context.namespace_options.network";
        refused(|c| c.linux = node, field);
    }

    #[test]
    fn a_node_without_network_takes_pods_but_no_host_ports() {
        let mut settings = Config::new("0", 4096);
        settings.network = false;
        let spec = convert("a", &config(), "", &settings, None).unwrap();
        assert_eq!(spec.network, None);
        let mut config = config();
        config.port_mappings.push(PortMapping {
            container_port: 80,
            host_port: 8080,
            ..PortMapping::default()
        });
        let error = convert("a", &config, "", &settings, None).unwrap_err();
        assert!(error.to_string().contains("--network none"), "{error}");
        settings.network = true;
        let spec = convert("a", &config, "", &settings, None).unwrap();
        let ports = spec.network.unwrap().capabilities.port_mappings;
        assert_eq!(ports[0].host_port, 8080);
    }

    #[test]
    fn only_known_handlers_are_taken() {
        let settings = Config::new("0", 4096);
        assert!(convert("a", &config(), "spherule", &settings, None).is_ok());
        let error = convert("a", &config(), "other", &settings, None).unwrap_err();
        assert!(error.to_string().starts_with("runtime_handler:"), "{error}");
    }

    #[test]
    fn host_name_comes_from_any_pod_name() {
        let of = |name: &str| {
            let mut config = config();
            config.metadata.as_mut().unwrap().name = name.into();
            converted(&config).unwrap().hostname
        };
        assert_eq!(of("ünï"), "n");
        assert_eq!(of("---"), "pod");
        assert_eq!(of(&"x".repeat(200)).len(), 63);
    }
}
