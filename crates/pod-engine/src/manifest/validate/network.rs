//! What a manifest says of the pod's network.

use super::Faults;
use crate::manifest::{
    Container, DnsPolicy, Manifest, NodeLimits, PodSpec, is_dns_label, is_dns_subdomain,
};
use pod_network::Bandwidth;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Most servers, and most search domains, as the API server has it.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// Most addresses with names of their own, and most names of one.
const MAX_ALIASES: usize = 256;

pub(super) fn check(manifest: &Manifest, limits: &NodeLimits, faults: &mut Faults<'_>) {
    dns(&manifest.spec, faults);
    aliases(&manifest.spec, faults);
    let mut taken = BTreeSet::new();
    for (path, item) in manifest.all_containers() {
        host_ports(&path, item, limits, &mut taken, faults);
    }
    let annotations = &manifest.metadata.annotations;
    if let Err(error) =
        Bandwidth::from_annotations(|name| annotations.get(name).map(String::as_str))
    {
        faults.add("metadata.annotations", pod_network::chain_text(&error));
    }
}

fn host_ports<'a>(
    path: &str,
    item: &'a Container,
    limits: &NodeLimits,
    taken: &mut BTreeSet<(i64, &'a str, &'a str)>,
    faults: &mut Faults<'_>,
) {
    for (i, port) in item.ports.iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        if !port.host_ip.is_empty() && port.host_ip.parse::<IpAddr>().is_err() {
            let message = format!("{:?} is no IP address", port.host_ip);
            faults.add(format!("{path}.hostIP"), message);
        }
        if port.host_port == 0 {
            continue;
        }
        let path = format!("{path}.hostPort");
        faults.require(
            (1..=65535).contains(&port.host_port),
            &path,
            "must be between 1 and 65535",
        );
        faults.require(
            limits.network,
            &path,
            "needs a network, and this node's pods have their loopback only (spherule serve \
             --network none)",
        );
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        faults.require(
            taken.insert((port.host_port, protocol, &port.host_ip)),
            &path,
            "is another port's of this pod",
        );
    }
}

fn dns(spec: &PodSpec, faults: &mut Faults<'_>) {
    let config = spec.dns_config.clone().unwrap_or_default();
    let path = "spec.dnsConfig";
    faults.require(
        spec.dns_policy != DnsPolicy::None || !config.nameservers.is_empty(),
        &format!("{path}.nameservers"),
        "required with dnsPolicy None",
    );
    faults.require(
        config.nameservers.len() <= MAX_SERVERS,
        &format!("{path}.nameservers"),
        "more than 3 servers",
    );
    for (i, server) in config.nameservers.iter().enumerate() {
        faults.require(
            server.parse::<IpAddr>().is_ok(),
            &format!("{path}.nameservers[{i}]"),
            "must be an IP address",
        );
    }
    faults.require(
        config.searches.len() <= MAX_SEARCHES,
        &format!("{path}.searches"),
        "more than 32 domains",
    );
    for (i, domain) in config.searches.iter().enumerate() {
        let name = domain.strip_suffix('.').unwrap_or(domain);
        let fits = domain == "."
            || name
                .split('.')
                .all(|l| is_dns_label(l.trim_start_matches('_')));
        faults.require(
            fits && domain.len() <= 253,
            &format!("{path}.searches[{i}]"),
            "must be a domain",
        );
    }
    for (i, option) in config.options.iter().enumerate() {
        let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        let fits = !option.name.is_empty()
            && is_word(&option.name)
            && option.value.as_deref().is_none_or(is_word);
        faults.require(
            fits,
            &format!("{path}.options[{i}]"),
            "must be a word, and a word as its value",
        );
    }
}

fn aliases(spec: &PodSpec, faults: &mut Faults<'_>) {
    faults.require(
        spec.host_aliases.len() <= MAX_ALIASES,
        "spec.hostAliases",
        "more than 256 addresses",
    );
    for (i, alias) in spec.host_aliases.iter().enumerate() {
        let path = format!("spec.hostAliases[{i}]");
        faults.require(
            alias.ip.parse::<IpAddr>().is_ok(),
            &format!("{path}.ip"),
            "must be an IP address",
        );
        faults.require(
            alias.hostnames.len() <= MAX_ALIASES,
            &format!("{path}.hostnames"),
            "more than 256 names",
        );
        for (n, name) in alias.hostnames.iter().enumerate() {
            faults.require(
                is_dns_subdomain(name),
                &format!("{path}.hostnames[{n}]"),
                super::SUBDOMAIN_FORM,
            );
        }
    }
}
