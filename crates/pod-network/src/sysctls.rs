//! Kernel parameters that plugins set in the pod's namespace (`tuning`): the guest's
//! kernel is another one, and has to have them, too.

use crate::cni::list::NetworkList;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The parameters that the plugins of a network are told to set, by their paths below
/// /proc/sys ("net/core/somaxconn"), as they are by now. To be called in the pod's
/// namespace. What cannot be read was not set, and its plugin has said so.
pub(crate) fn read(list: &NetworkList, interface: &str) -> BTreeMap<String, String> {
    let told = list.plugins.iter().flat_map(|plugin| plugin.sysctls());
    // The plugin's own word for it.
    let told = told.map(|name| name.replace("IFNAME", interface));
    let paths = told
        .map(|name| path(&name))
        .filter(|path| is_of_network(path));
    paths
        .filter_map(|path| {
            let value = fs::read_to_string(Path::new("/proc/sys").join(&path)).ok()?;
            Some((path, value.trim_end().to_owned()))
        })
        .collect()
}

/// Of a name in sysctl(8)'s form, with dots or with slashes: the first one separates, the
/// other stands for a dot.
pub fn path(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name.as_bytes().get(at));
    match first {
        Some(b'.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn is_of_network(path: &str) -> bool {
    path.starts_with("net/") && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_below_the_network_only() {
        for (name, want) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            (
                "net/ipv4/conf/eth0.1/rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
            (
                "net.ipv4.conf.eth0/1.rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
        ] {
            assert_eq!(path(name), want);
            assert!(is_of_network(&path(name)));
        }
        for name in [
            "kernel.domainname",
            "net/../kernel/x",
            "net",
            "/net/a",
            "net//a",
        ] {
            assert!(!is_of_network(&path(name)), "{name}");
        }
    }
}
