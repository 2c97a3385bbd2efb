//! The text files in containers that name hosts.

use crate::spec::{DnsSpec, HostAlias};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
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

/// The node's own, and where systemd-resolved keeps the servers that it asks.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// More of a file is no configuration.
const MAX_LEN: u64 = 64 << 10;

/// What a line can hold without becoming another line, or another word.
pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

/// Name resolution as the node has it. Servers on its loopback are of no use to a
/// pod.
pub(crate) fn of_node() -> DnsSpec {
    let read = |path| {
        let mut text = String::new();
        let file = File::open(path).ok()?;
        file.take(MAX_LEN).read_to_string(&mut text).ok()?;
        Some(parse(&text)).filter(|found| !found.servers.is_empty())
    };
    RESOLV_CONF.into_iter().find_map(read).unwrap_or_default()
}

fn parse(text: &str) -> DnsSpec {
    let mut found = DnsSpec::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => {
                let is_loopback =
                    |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                found
                    .servers
                    .extend(words.next().filter(|s| !is_loopback(s)));
            }
            // The last of them counts.
            Some("search" | "domain") => found.searches = words.collect(),
            Some("options") => found.options.extend(words),
            _ => {}
        }
    }
    found
}

/// /etc/resolv.conf; empty where there is nothing to say. `others` may be a
/// plugin's: what is not one word is left out.
pub(crate) fn resolv_conf(others: DnsSpec, own: DnsSpec) -> String {
    let words = |others: Vec<String>, own: Vec<String>| {
        let mut all = Vec::new();
        for word in others.into_iter().chain(own) {
            if is_word(&word) && !all.contains(&word) {
                all.push(word);
            }
        }
        all
    };
    let mut text = String::new();
    let searches = words(others.searches, own.searches);
    if !searches.is_empty() {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    for server in words(others.servers, own.servers) {
        let _ = writeln!(text, "nameserver {server}");
    }
    let options = words(others.options, own.options);
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
    fn own_name_resolution_is_added_to_that_of_others_once() {
        let nothing = DnsSpec::default;
        assert_eq!(resolv_conf(nothing(), nothing()), "");
        let others = DnsSpec {
            servers: vec!["10.0.0.1".into(), "1.1.1.1\nnameserver 6.6.6.6".into()],
            searches: vec!["example.org".into()],
            ..DnsSpec::default()
        };
        let own = DnsSpec {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            options: vec!["ndots:2".into()],
            ..DnsSpec::default()
        };
        assert_eq!(
            resolv_conf(others, own),
            "search example.org\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:2\n"
        );
    }

    #[test]
    fn a_nodes_servers_on_its_loopback_are_left_out() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.1.1.1 # y\n\
                    domain a\nsearch b c\noptions edns0 trust-ad\nsortlist z\n";
        let found = parse(text);
        assert_eq!(found.servers, ["10.1.1.1"]);
        assert_eq!(found.searches, ["b", "c"]);
        assert_eq!(found.options, ["edns0", "trust-ad"]);
    }
}
