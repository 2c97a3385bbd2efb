//! What the runtime tells plugins beside their configuration.

use crate::MacAddr;
use ipnet::{AddrParseError, IpNet};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

/// Whose network it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    /// The sandbox's id: CNI_CONTAINERID, and K8S_POD_INFRA_CONTAINER_ID.
    pub sandbox_id: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's uid.
    pub uid: String,
}

/// A port of the host that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port of the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The host's address; all of them where none is given.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// Limits on the pod's traffic. Rates in bits a second, bursts in bits; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// To the pod.
    pub ingress_rate: u64,
    /// To the pod.
    pub ingress_burst: u64,
    /// From the pod.
    pub egress_rate: u64,
    /// From the pod.
    pub egress_burst: u64,
}

impl Bandwidth {
    /// As the annotations of Kubernetes give it: rates alone, in bits a second.
    #[must_use]
    pub fn from_rates(ingress: Option<u64>, egress: Option<u64>) -> Self {
        // The plugins refuse a rate without a burst; this is the largest they take.
        let burst = |rate: Option<u64>| rate.map_or(0, |_| u64::from(i32::MAX.unsigned_abs()));
        Self {
            ingress_rate: ingress.unwrap_or(0),
            ingress_burst: burst(ingress),
            egress_rate: egress.unwrap_or(0),
            egress_burst: burst(egress),
        }
    }
}

/// Name resolution that the pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRequest {
    /// Domains for short names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// Addresses of servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Options for resolv.conf.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A range that the pod's address is to come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    /// The subnet.
    pub subnet: IpNet,
    /// Its first address to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// Its last address to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// Its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

impl FromStr for IpRange {
    type Err = AddrParseError;

    /// All of a subnet, such as `10.0.0.0/24`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let subnet: IpNet = text.parse()?;
        Ok(Self {
            subnet: subnet.trunc(),
            range_start: None,
            range_end: None,
            gateway: None,
        })
    }
}

/// What a plugin gets as `runtimeConfig` where its configuration declares the
/// capability (CONVENTIONS.md of containernetworking/cni).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `portMappings`
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// `dns`
    #[serde(default)]
    pub dns: Option<DnsRequest>,
    /// `aliases`
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `ipRanges`: for each address of the pod the ranges to take it from.
    #[serde(default)]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// `mac`
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// `ips`
    #[serde(default)]
    pub ips: Vec<IpNet>,
    /// Any other, by name.
    #[serde(default)]
    pub other: BTreeMap<String, Value>,
}

impl Capabilities {
    /// The capabilities that have something to say, as the plugins want them.
    pub(crate) fn arguments(&self) -> BTreeMap<&str, Value> {
        let mut all: BTreeMap<&str, Value> = self
            .other
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        let lists = [
            ("portMappings", json!(self.port_mappings)),
            ("aliases", json!(self.aliases)),
            ("ipRanges", json!(self.ip_ranges)),
            ("ips", json!(self.ips)),
        ];
        for (name, list) in lists {
            if list.as_array().is_some_and(|l| !l.is_empty()) {
                all.insert(name, list);
            }
        }
        if let Some(bandwidth) = &self.bandwidth {
            all.insert("bandwidth", bandwidth_argument(*bandwidth));
        }
        if let Some(dns) = &self.dns {
            all.insert("dns", json!(dns));
        }
        if let Some(mac) = &self.mac {
            all.insert("mac", json!(mac));
        }
        all
    }
}

/// The plugin takes a rate of 0 together with a burst for a fault, so what is not
/// limited is left out.
fn bandwidth_argument(bandwidth: Bandwidth) -> Value {
    let mut object = Map::new();
    let pairs = [
        ("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
        ("egress", bandwidth.egress_rate, bandwidth.egress_burst),
    ];
    for (direction, rate, burst) in pairs {
        if rate > 0 {
            object.insert(format!("{direction}Rate"), rate.into());
            object.insert(format!("{direction}Burst"), burst.into());
        }
    }
    Value::Object(object)
}

/// CNI_ARGS.
pub(crate) fn arguments(pod: &PodIdentity) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.sandbox_id, pod.uid
    )
}

/// The first part of the identity that would break out of CNI_ARGS, or that
/// plugins would refuse.
pub(crate) fn unfit(pod: &PodIdentity) -> Option<(&'static str, &str)> {
    let parts = [
        ("name", &pod.name),
        ("namespace", &pod.namespace),
        ("uid", &pod.uid),
    ];
    if !super::list::is_identifier(&pod.sandbox_id) || pod.sandbox_id.len() > 200 {
        return Some(("sandbox id", &pod.sandbox_id));
    }
    parts
        .into_iter()
        .find(|(_, text)| {
            text.bytes()
                .any(|b| matches!(b, b';' | b'=') || !b.is_ascii_graphic())
        })
        .map(|(name, text)| (name, text.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_with_nothing_to_say_are_left_out() {
        assert!(Capabilities::default().arguments().is_empty());
    }

    #[test]
    fn capabilities_are_written_as_the_conventions_say() {
        let capabilities = Capabilities {
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: Some("127.0.0.1".parse().unwrap()),
            }],
            bandwidth: Some(Bandwidth::from_rates(Some(1_000_000), None)),
            ip_ranges: vec![vec![IpRange {
                subnet: "10.1.2.0/24".parse().unwrap(),
                range_start: Some("10.1.2.3".parse().unwrap()),
                range_end: None,
                gateway: None,
            }]],
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ..Capabilities::default()
        };
        let arguments = serde_json::to_value(capabilities.arguments()).unwrap();
        assert_eq!(
            arguments,
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
                "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": i32::MAX},
                "ipRanges": [[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.3"}]],
                "mac": "02:00:00:00:00:01",
            })
        );
    }

    #[test]
    fn an_identity_cannot_add_arguments() {
        let pod = |name: &str, id: &str| PodIdentity {
            sandbox_id: id.into(),
            name: name.into(),
            namespace: "default".into(),
            uid: "u".into(),
        };
        assert_eq!(unfit(&pod("web", "a1")), None);
        assert!(unfit(&pod("web;IP=10.0.0.1", "a1")).is_some());
        assert!(unfit(&pod("web", "../a1")).is_some());
        assert!(unfit(&pod("web", "")).is_some());
    }
}
