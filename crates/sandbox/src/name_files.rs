//! The text files in containers that name hosts.

use crate::spec::HostAlias;
use pod_network::Dns;
use std::fmt::Write as _;
use std::net::IpAddr;

/// /etc/hosts: the pod by its addresses, or by the loopback where it has none.
pub(crate) fn hosts(hostname: &str, pod_ips: &[IpAddr], aliases: &[HostAlias]) -> String {
    let mut text = "# Written by spherule for the pod.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n"
        .to_owned();
    let loopback = [IpAddr::from([127, 0, 0, 1])];
    let own = if pod_ips.is_empty() {
        &loopback
    } else {
        pod_ips
    };
    for ip in own {
        let _ = writeln!(text, "{ip}\t{hostname}");
    }
    for alias in aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.join(" "));
    }
    text
}

/// /etc/resolv.conf as a network wants it; empty where it says nothing. The text
/// is a plugin's: what is not one word is left out.
pub(crate) fn resolv_conf(dns: &Dns) -> String {
    let words = |list: &[String]| -> Vec<String> {
        let is_word = |text: &&String| {
            !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
        };
        list.iter().filter(is_word).cloned().collect()
    };
    let mut text = String::new();
    let mut search = words(&dns.search);
    if search.is_empty() {
        search = words(dns.domain.as_slice());
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in words(&dns.nameservers) {
        let _ = writeln!(text, "nameserver {server}");
    }
    let options = words(&dns.options);
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_by_its_addresses_or_its_loopback() {
        assert!(hosts("web", &[], &[]).ends_with("\n127.0.0.1\tweb\n"));
        let ips = ["10.0.0.2", "fd00::2"].map(|ip| ip.parse().unwrap());
        let alias = HostAlias {
            ip: "10.9.9.9".parse().unwrap(),
            hostnames: vec!["db".into(), "db.local".into()],
        };
        let text = hosts("web", &ips, &[alias]);
        assert!(
            text.ends_with("\n10.0.0.2\tweb\nfd00::2\tweb\n10.9.9.9\tdb db.local\n"),
            "{text}"
        );
        assert!(text.contains("127.0.0.1\tlocalhost\n"), "{text}");
    }

    #[test]
    fn a_networks_name_resolution_is_written_without_what_is_no_word() {
        assert_eq!(resolv_conf(&Dns::default()), "");
        let dns = Dns {
            nameservers: vec!["10.0.0.1".into(), "1.1.1.1\nnameserver 6.6.6.6".into()],
            domain: Some("example.org".into()),
            search: Vec::new(),
            options: vec!["ndots:2".into(), String::new()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search example.org\nnameserver 10.0.0.1\noptions ndots:2\n"
        );
    }
}
