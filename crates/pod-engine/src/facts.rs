//! What a pod may be told of itself: the values of `fieldRef` and
//! `resourceFieldRef`. Pure but for the node's name.

use crate::manifest::{Container, Field, Manifest, Quantity, ResourceFieldRef};
use crate::record::Pod;
use crate::sizing::{self, VmSize};
use std::collections::BTreeMap;

/// The service account of pods without an API server.
const SERVICE_ACCOUNT: &str = "default";

/// A pod, as its containers may see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) manifest: &'a Manifest,
    pub(crate) size: VmSize,
    /// Size in MiB of its scratch disk.
    pub(crate) scratch_mib: u64,
}

/// This node's name: its host name, as the kubelet has it.
pub(crate) fn node_name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().to_lowercase()
}

impl Facts<'_> {
    /// The text of a field; empty where the pod does not have it.
    pub(crate) fn field(&self, field: &Field) -> String {
        let pod = self.pod;
        let of = |map: &BTreeMap<String, String>, key| map.get(key).cloned().unwrap_or_default();
        match field {
            Field::Name => pod.name.clone(),
            Field::Namespace => pod.namespace.clone(),
            Field::Uid => pod.uid.clone(),
            Field::NodeName => node_name(),
            Field::ServiceAccountName => SERVICE_ACCOUNT.to_owned(),
            // Without a network there is none.
            Field::PodIp => pod
                .pod_ips
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            Field::PodIps => {
                let all: Vec<String> = pod.pod_ips.iter().map(ToString::to_string).collect();
                all.join(",")
            }
            Field::Labels => lines(&pod.labels),
            Field::Annotations => lines(&pod.annotations),
            Field::Label(key) => of(&pod.labels, key),
            Field::Annotation(key) => of(&pod.annotations, key),
        }
    }

    /// The amount of a resource, divided and rounded up. A container without a
    /// limit has all of the VM.
    pub(crate) fn resource(&self, reference: &ResourceFieldRef, own: &Container) -> String {
        let named = |c: &&Container| c.name == reference.container_name;
        let spec = &self.manifest.spec;
        let mut all = spec.containers.iter().chain(&spec.init_containers);
        let container = all.find(named).unwrap_or(own);
        let resources = &container.resources;
        let (kind, name) = reference
            .resource
            .split_once('.')
            .unwrap_or((&reference.resource, ""));
        let limit = resources.limits.get(name).copied();
        let amount = if kind == "limits" {
            limit.unwrap_or_else(|| match name {
                "cpu" => Quantity::whole(self.size.vcpus.into()),
                sizing::EPHEMERAL_STORAGE => Quantity::whole(self.scratch_mib << 20),
                _ => Quantity::whole(self.size.memory_mib << 20),
            })
        } else {
            let request = resources.requests.get(name).copied();
            request.or(limit).unwrap_or_default()
        };
        amount
            .div_ceil(reference.divisor.unwrap_or_default())
            .to_string()
    }
}

/// A line a pair, as the kubelet writes labels and annotations.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={}", quoted(value)))
        .collect();
    lines.join("\n")
}

/// In the form of Go's `%q`, for what labels and annotations hold.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::manifest::NodeLimits;

    /// What a manifest's pod is, with everything that a test needs of it.
    pub(crate) fn pod_of(text: &str) -> (Pod, Manifest, VmSize) {
        let limits = NodeLimits {
            memory_mib: 1024,
            network: true,
        };
        let (manifest, tree) = Manifest::parse(text, &limits).unwrap();
        let size = VmSize {
            vcpus: 2,
            memory_mib: 512,
        };
        let record = crate::engine::new_record(&manifest, tree.to_string(), None, size);
        (record.pod, manifest, size)
    }

    #[test]
    fn fields_and_amounts_are_told_as_kubernetes_tells_them() {
        let (pod, manifest, size) = pod_of(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p, uid: u-1, labels: {b: '2', a: '1'}, annotations: {n: \"x\\\"\\ny\"}}\nspec: {containers: [{name: c, image: i, resources: {limits: {cpu: 1500m}, requests: {memory: 100Mi, ephemeral-storage: 5M}}}]}",
        );
        let facts = Facts {
            pod: &pod,
            manifest: &manifest,
            size,
            scratch_mib: 2048,
        };
        assert_eq!(facts.field(&Field::Namespace), "default");
        assert_eq!(facts.field(&Field::Uid), "u-1");
        assert_eq!(facts.field(&Field::Labels), "a=\"1\"\nb=\"2\"");
        assert_eq!(facts.field(&Field::Annotations), "n=\"x\\\"\\ny\"");
        assert_eq!(facts.field(&Field::Label("a".into())), "1");
        assert_eq!(facts.field(&Field::Label("none".into())), "");
        let amount = |resource: &str, divisor: Option<&str>| {
            let reference = ResourceFieldRef {
                container_name: String::new(),
                resource: resource.into(),
                divisor: divisor.map(|d| d.parse().unwrap()),
            };
            facts.resource(&reference, &manifest.spec.containers[0])
        };
        assert_eq!(amount("limits.cpu", None), "2");
        assert_eq!(amount("limits.cpu", Some("1m")), "1500");
        assert_eq!(amount("requests.cpu", Some("1m")), "1500");
        assert_eq!(amount("requests.memory", Some("1Mi")), "100");
        assert_eq!(amount("limits.memory", Some("1Mi")), "512");
        assert_eq!(amount("limits.memory", Some("0")), "536870912");
        assert_eq!(amount("limits.ephemeral-storage", Some("1Gi")), "2");
        assert_eq!(amount("requests.ephemeral-storage", Some("1k")), "5000");
    }
}
