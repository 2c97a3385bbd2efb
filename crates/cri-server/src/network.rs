//! A pod's wish for a network, and its addresses.

use crate::error::{CriError, chain};
use cri_api::v1::{
    DnsConfig, PodIp, PodSandboxConfig, PodSandboxNetworkStatus, PortMapping, Protocol,
};
use pod_network::{Bandwidth, Capabilities, DnsRequest};
use sandbox::{NetworkSpec, Sandbox};
use std::net::IpAddr;

/// What plugins are told of the pod. A port without a host port is for
/// information.
pub(crate) fn wish(config: &PodSandboxConfig) -> Result<NetworkSpec, CriError> {
    let mut port_mappings = Vec::new();
    for (index, mapping) in config.port_mappings.iter().enumerate() {
        port_mappings.extend(port(index, mapping)?);
    }
    Ok(NetworkSpec {
        capabilities: Capabilities {
            port_mappings,
            bandwidth: bandwidth(config)?,
            dns: config.dns_config.as_ref().map(dns),
            aliases: aliases(config),
            ..Capabilities::default()
        },
        insist: false,
    })
}

/// The names that a network with names of its own is to know the pod by.
fn aliases(config: &PodSandboxConfig) -> Vec<String> {
    let hostname = Some(&config.hostname).filter(|name| !name.is_empty());
    let name = config.metadata.as_ref().map(|metadata| &metadata.name);
    hostname.or(name).cloned().into_iter().collect()
}

fn bandwidth(config: &PodSandboxConfig) -> Result<Option<Bandwidth>, CriError> {
    let annotations = &config.annotations;
    let found = Bandwidth::from_annotations(|name| annotations.get(name).map(String::as_str));
    found.map_err(|error| CriError::invalid("config.annotations", chain(&error)))
}

fn dns(config: &DnsConfig) -> DnsRequest {
    DnsRequest {
        searches: config.searches.clone(),
        servers: config.servers.clone(),
        options: config.options.clone(),
    }
}

/// The mapping, if it is of a port of the host.
fn port(index: usize, mapping: &PortMapping) -> Result<Option<pod_network::PortMapping>, CriError> {
    let invalid = |name: &str, message: String| {
        CriError::invalid(format!("config.port_mappings[{index}].{name}"), message)
    };
    let number = |name: &str, port: i32| {
        u16::try_from(port).map_err(|_| invalid(name, format!("{port} is no port")))
    };
    let container_port = number("container_port", mapping.container_port)?;
    let host_port = number("host_port", mapping.host_port)?;
    let protocol = match Protocol::try_from(mapping.protocol) {
        Ok(Protocol::Tcp) => "tcp",
        Ok(Protocol::Udp) => "udp",
        Ok(Protocol::Sctp) => "sctp",
        Err(_) => {
            let message = format!("{} is no protocol", mapping.protocol);
            return Err(invalid("protocol", message));
        }
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| invalid("host_ip", format!("{text:?} is no IP address")))?,
        ),
    };
    if host_port == 0 {
        return Ok(None);
    }
    if container_port == 0 {
        let message = "required with a host port".to_owned();
        return Err(invalid("container_port", message));
    }
    Ok(Some(pod_network::PortMapping {
        host_port,
        container_port,
        protocol: protocol.to_owned(),
        host_ip,
    }))
}

/// The pod's addresses; `None` while it has none. A network without an address
/// would have the kubelet replace the sandbox again and again.
pub(crate) fn status(sandbox: &Sandbox) -> Option<PodSandboxNetworkStatus> {
    let mut ips = sandbox.pod_ips.iter().map(ToString::to_string);
    Some(PodSandboxNetworkStatus {
        ip: ips.next()?,
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_port(mapping: PortMapping) -> Result<NetworkSpec, CriError> {
        wish(&PodSandboxConfig {
            port_mappings: vec![mapping],
            ..PodSandboxConfig::default()
        })
    }

    fn mapping(container_port: i32, host_port: i32) -> PortMapping {
        PortMapping {
            container_port,
            host_port,
            ..PortMapping::default()
        }
    }

    #[test]
    fn ports_of_the_host_become_mappings_and_others_do_not() {
        let of = |mapping| with_port(mapping).unwrap().capabilities.port_mappings;
        assert!(of(mapping(80, 0)).is_empty());
        let udp = PortMapping {
            protocol: Protocol::Udp.into(),
            host_ip: "127.0.0.1".into(),
            ..mapping(53, 5353)
        };
        let expected = pod_network::PortMapping {
            host_port: 5353,
            container_port: 53,
            protocol: "udp".into(),
            host_ip: Some([127, 0, 0, 1].into()),
        };
        assert_eq!(of(udp), [expected]);
    }

    #[test]
    fn rates_come_from_annotations() {
        let with = |rate: &str| {
            wish(&PodSandboxConfig {
                annotations: [("kubernetes.io/egress-bandwidth".to_owned(), rate.to_owned())]
                    .into(),
                ..PodSandboxConfig::default()
            })
        };
        let bandwidth = with("10M").unwrap().capabilities.bandwidth.unwrap();
        assert_eq!(bandwidth.egress_rate, 10_000_000);
        let error = with("fast").unwrap_err().to_string();
        assert!(error.starts_with("config.annotations:"), "{error}");
    }

    #[test]
    fn what_is_no_port_is_refused_by_field() {
        let refused = |mapping, field: &str| {
            let error = with_port(mapping).unwrap_err().to_string();
            let field = format!("config.port_mappings[0].{field}:");
            assert!(error.starts_with(&field), "{error}");
        };
        refused(mapping(-1, 0), "container_port");
        refused(mapping(0, 80), "container_port");
        refused(mapping(80, 65536), "host_port");
        let protocol = PortMapping {
            protocol: 9,
            ..mapping(80, 80)
        };
        refused(protocol, "protocol");
        let host_ip = PortMapping {
            host_ip: "localhost".into(),
            ..mapping(80, 80)
        };
        refused(host_ip, "host_ip");
    }
}
