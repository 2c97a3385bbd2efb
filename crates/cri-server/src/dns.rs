//! The text of /etc/resolv.conf.

use crate::error::CriError;
use cri_api::v1::DnsConfig;
use std::fmt::Write as _;
use std::net::IpAddr;

/// The text of /etc/resolv.conf; empty: as the network says.
pub(crate) fn resolv_conf(dns: Option<&DnsConfig>) -> Result<String, CriError> {
    let Some(dns) = dns else {
        return Ok(String::new());
    };
    for server in &dns.servers {
        // A scope may follow the address of a link.
        let address = server.split('%').next().unwrap_or_default();
        if address.parse::<IpAddr>().is_err() || !is_word(server) {
            return Err(CriError::invalid(
                "config.dns_config.servers",
                format!("{server:?} is no IP address"),
            ));
        }
    }
    for (field, words) in [("searches", &dns.searches), ("options", &dns.options)] {
        if let Some(bad) = words.iter().find(|word| !is_word(word)) {
            return Err(CriError::invalid(
                format!("config.dns_config.{field}"),
                format!("{bad:?} is not one word of printable characters"),
            ));
        }
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    Ok(text)
}

/// What a line of resolv.conf can hold without becoming another line.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        DnsConfig {
            servers: owned(servers),
            searches: owned(searches),
            options: owned(options),
        }
    }

    #[test]
    fn each_part_has_its_line() {
        let config = dns(
            &["10.10.10.10", "fe80::1%eth0"],
            &["a.b", "c"],
            &["ndots:8"],
        );
        assert_eq!(
            resolv_conf(Some(&config)).unwrap(),
            "search a.b c\nnameserver 10.10.10.10\nnameserver fe80::1%eth0\noptions ndots:8\n"
        );
        assert_eq!(resolv_conf(None).unwrap(), "");
    }

    #[test]
    fn lines_cannot_be_smuggled_in() {
        for config in [
            dns(&["1.1.1.1\nnameserver 2.2.2.2"], &[], &[]),
            dns(&["fe80::1%a\nb"], &[], &[]),
            dns(&["example.org"], &[], &[]),
            dns(&[], &["a\nb"], &[]),
            dns(&[], &[], &["a b"]),
            dns(&[], &[""], &[]),
        ] {
            assert!(resolv_conf(Some(&config)).is_err(), "{config:?}");
        }
    }
}
