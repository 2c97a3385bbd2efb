//! Linux capabilities by name, and the set a container gets.

use crate::manifest::Capabilities;
use std::collections::BTreeSet;

/// All capabilities of Linux 6.12 without their `CAP_`.
const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

/// What container runtimes grant by default.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A name as Kubernetes takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// Every one.
    All,
    /// Without `CAP_`.
    One(&'static str),
}

/// The capability called `name`, with or without `CAP_`.
pub(crate) fn parse(name: &str) -> Option<Named> {
    let bare = name.strip_prefix("CAP_").unwrap_or(name);
    if bare == "ALL" {
        return Some(Named::All);
    }
    ALL.iter()
        .find(|known| **known == bare)
        .map(|known| Named::One(known))
}

/// The set of a container as "CAP_X", sorted: the default one, less what is
/// dropped, and what is added; `ALL` counts before single names.
pub(crate) fn granted(privileged: bool, wish: &Capabilities) -> Vec<String> {
    let named = |list: &[String]| list.iter().filter_map(|n| parse(n)).collect::<Vec<_>>();
    let (add, drop) = (named(&wish.add), named(&wish.drop));
    let mut set: BTreeSet<&str> = DEFAULT.into();
    if privileged || add.contains(&Named::All) {
        set = ALL.into();
    }
    if drop.contains(&Named::All) && !privileged {
        set.clear();
        if add.contains(&Named::All) {
            set = ALL.into();
        }
    }
    for item in &add {
        if let Named::One(name) = item {
            set.insert(name);
        }
    }
    for item in &drop {
        if let Named::One(name) = item
            && !privileged
        {
            set.remove(name);
        }
    }
    set.into_iter().map(|name| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(add: &[&str], drop: &[&str]) -> Capabilities {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Capabilities {
            add: owned(add),
            drop: owned(drop),
        }
    }

    #[test]
    fn drop_all_leaves_what_is_added() {
        let set = granted(false, &wish(&["NET_BIND_SERVICE"], &["ALL"]));
        assert_eq!(set, ["CAP_NET_BIND_SERVICE"]);
    }

    #[test]
    fn default_set_less_one_plus_one() {
        let set = granted(false, &wish(&["CAP_NET_ADMIN"], &["CHOWN"]));
        assert_eq!(set.len(), DEFAULT.len());
        assert!(set.contains(&"CAP_NET_ADMIN".to_owned()));
        assert!(!set.contains(&"CAP_CHOWN".to_owned()));
    }

    #[test]
    fn add_all_and_privileged_have_every_one() {
        assert_eq!(granted(false, &wish(&["ALL"], &[])).len(), ALL.len());
        assert_eq!(granted(true, &wish(&[], &["ALL"])).len(), ALL.len());
    }

    #[test]
    fn unknown_names_are_none() {
        assert_eq!(parse("CAP_FLY"), None);
        assert_eq!(parse("net_admin"), None);
    }
}
