//! Name resolution.

use crate::error::CriError;
use cri_api::v1::DnsConfig;
use sandbox::DnsSpec;
use std::net::IpAddr;

/// Name resolution of a pod.
pub(crate) fn dns(config: Option<&DnsConfig>) -> Result<DnsSpec, CriError> {
    let Some(dns) = config else {
        return Ok(DnsSpec::default());
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
    // What says nothing is as no configuration, as containerd has it.
    let alone = [&dns.servers, &dns.searches, &dns.options]
        .iter()
        .any(|list| !list.is_empty());
    Ok(DnsSpec {
        alone,
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    })
}

/// What a line of resolv.conf can hold without becoming another line.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        DnsConfig {
            servers: owned(servers),
            searches: owned(searches),
            options: owned(options),
        }
    }

    #[test]
    fn what_is_asked_for_stands_alone() {
        let config = config(
            &["10.10.10.10", "fe80::1%eth0"],
            &["a.b", "c"],
            &["ndots:8"],
        );
        let spec = dns(Some(&config)).unwrap();
        assert!(spec.alone);
        assert_eq!(spec.servers, ["10.10.10.10", "fe80::1%eth0"]);
        assert_eq!((spec.searches.len(), spec.options.len()), (2, 1));
        assert!(!dns(Some(&DnsConfig::default())).unwrap().alone);
        assert_eq!(dns(None).unwrap(), DnsSpec::default());
    }

    #[test]
    fn lines_cannot_be_smuggled_in() {
        for config in [
            config(&["1.1.1.1\nnameserver 2.2.2.2"], &[], &[]),
            config(&["fe80::1%a\nb"], &[], &[]),
            config(&["example.org"], &[], &[]),
            config(&[], &["a\nb"], &[]),
            config(&[], &[], &["a b"]),
            config(&[], &[""], &[]),
        ] {
            assert!(dns(Some(&config)).is_err(), "{config:?}");
        }
    }
}
