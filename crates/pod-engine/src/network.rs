//! From a manifest to what its sandbox wants of the network: pure. What the
//! manifest's checks have refused cannot come here.

use crate::manifest::{DnsPolicy, Manifest};
use pod_network::{Bandwidth, Capabilities, DnsRequest, PortMapping};
use sandbox::{DnsSpec, HostAlias, NetworkSpec};

/// What the plugins are told; by its host name a network with names knows the pod.
pub(crate) fn wish(manifest: &Manifest, hostname: &str) -> NetworkSpec {
    let annotations = &manifest.metadata.annotations;
    let bandwidth = Bandwidth::from_annotations(|name| annotations.get(name).map(String::as_str));
    let dns = dns(manifest);
    NetworkSpec {
        capabilities: Capabilities {
            port_mappings: port_mappings(manifest),
            bandwidth: bandwidth.unwrap_or_default(),
            dns: manifest.spec.dns_config.as_ref().map(|_| DnsRequest {
                searches: dns.searches,
                servers: dns.servers,
                options: dns.options,
            }),
            aliases: vec![hostname.to_owned()],
            ..Capabilities::default()
        },
        insist: true,
    }
}

fn port_mappings(manifest: &Manifest) -> Vec<PortMapping> {
    let containers = manifest.all_containers();
    let ports = containers.flat_map(|(_, container)| &container.ports);
    ports
        .filter(|port| port.host_port != 0)
        .filter_map(|port| {
            Some(PortMapping {
                host_port: port.host_port.try_into().ok()?,
                container_port: port.container_port.try_into().ok()?,
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                host_ip: port.host_ip.parse().ok(),
            })
        })
        .collect()
}

/// Name resolution. There is no cluster here: ClusterFirst is Default, as it is for
/// a kubelet that knows no cluster's server.
pub(crate) fn dns(manifest: &Manifest) -> DnsSpec {
    let config = manifest.spec.dns_config.clone().unwrap_or_default();
    let option = |option: crate::manifest::DnsOption| match option.value {
        Some(value) if !value.is_empty() => format!("{}:{value}", option.name),
        _ => option.name,
    };
    DnsSpec {
        alone: manifest.spec.dns_policy == DnsPolicy::None,
        servers: config.nameservers,
        searches: config.searches,
        options: config.options.into_iter().map(option).collect(),
    }
}

/// Names in /etc/hosts.
pub(crate) fn host_aliases(manifest: &Manifest) -> Vec<HostAlias> {
    let aliases = manifest.spec.host_aliases.iter();
    aliases
        .filter_map(|alias| {
            Some(HostAlias {
                ip: alias.ip.parse().ok()?,
                hostnames: alias.hostnames.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::NodeLimits;

    const LIMITS: NodeLimits = NodeLimits {
        memory_mib: 4096,
        network: true,
    };

    fn manifest(spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, annotations: {{kubernetes.io/egress-bandwidth: 1M}}}}\nspec:\n  containers:\n  - name: c\n    image: i\n    ports: [{{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}}, {{containerPort: 53, protocol: UDP}}]\n{spec}"
        )
    }

    #[test]
    fn ports_rates_and_names_come_from_the_manifest() {
        let spec = "  dnsPolicy: None\n  dnsConfig: {nameservers: [10.0.0.1], searches: [a.b], options: [{name: ndots, value: '2'}, {name: rotate}]}\n  hostAliases: [{ip: 10.9.9.9, hostnames: [db]}]\n";
        let (manifest, _) = Manifest::parse(&manifest(spec), &LIMITS).unwrap();
        let wish = wish(&manifest, "web").capabilities;
        assert_eq!(
            wish.port_mappings,
            [PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: Some([127, 0, 0, 1].into()),
            }]
        );
        assert_eq!(wish.aliases, ["web"]);
        assert_eq!(wish.bandwidth.unwrap().egress_rate, 1_000_000);
        let dns = dns(&manifest);
        assert!(dns.alone);
        assert_eq!(dns.options, ["ndots:2", "rotate"]);
        assert_eq!(host_aliases(&manifest)[0].hostnames, ["db"]);
    }

    #[test]
    fn what_the_network_cannot_have_is_refused_by_path() {
        let refused = |spec: &str, path: &str, limits: &NodeLimits| {
            let error = Manifest::parse(&manifest(spec), limits).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        };
        refused("  dnsPolicy: None\n", "spec.dnsConfig.nameservers", &LIMITS);
        refused(
            "  dnsConfig: {nameservers: [dns]}\n",
            "spec.dnsConfig.nameservers[0]",
            &LIMITS,
        );
        refused(
            "  dnsConfig: {options: [{name: \"a b\"}]}\n",
            "spec.dnsConfig.options[0]",
            &LIMITS,
        );
        refused(
            "  hostAliases: [{ip: x, hostnames: [db]}]\n",
            "spec.hostAliases[0].ip",
            &LIMITS,
        );
        let none = NodeLimits {
            network: false,
            ..LIMITS
        };
        refused("", "spec.containers[0].ports[0].hostPort", &none);
    }
}
