//! The Linux capabilities that a container can be given, by name, and the set
//! that it gets: one set of rules for all who make containers.

use std::collections::BTreeSet;

/// All capabilities of Linux 6.12 without their `CAP_`.
pub const ALL: [&str; 41] = [
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
pub const DEFAULT: [&str; 14] = [
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

/// A capability as requests name it, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// Every one.
    All,
    /// Without its `CAP_`.
    One(&'static str),
}

/// The capability called `name`: in any case, with or without `CAP_`.
pub fn parse(name: &str) -> Option<Named> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if bare == "ALL" {
        return Some(Named::All);
    }
    let known = ALL.iter().find(|known| **known == bare);
    known.map(|known| Named::One(known))
}

/// Those that are named one by one.
pub fn singles(list: &[Named]) -> impl Iterator<Item = &'static str> {
    list.iter().filter_map(|named| match named {
        Named::One(name) => Some(*name),
        Named::All => None,
    })
}

/// The default set or, privileged, every one; then `ALL` added, `ALL` dropped,
/// single names added, single names dropped, as Kubernetes' runtimes agree.
pub fn granted(privileged: bool, add: &[Named], drop: &[Named]) -> BTreeSet<&'static str> {
    if privileged {
        return ALL.into();
    }
    let mut set: BTreeSet<_> = if drop.contains(&Named::All) {
        BTreeSet::new()
    } else if add.contains(&Named::All) {
        ALL.into()
    } else {
        DEFAULT.into()
    };
    set.extend(singles(add));
    for name in singles(drop) {
        set.remove(name);
    }
    set
}

/// The names as the agent takes them, with `CAP_`.
pub fn full_names(set: &BTreeSet<&str>) -> Vec<String> {
    set.iter().map(|name| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(privileged: bool, add: &[&str], drop: &[&str]) -> BTreeSet<&'static str> {
        let named = |list: &[&str]| -> Vec<_> { list.iter().map(|n| parse(n).unwrap()).collect() };
        granted(privileged, &named(add), &named(drop))
    }

    #[test]
    fn dropping_all_leaves_what_is_added() {
        let left = set(false, &["NET_BIND_SERVICE"], &["ALL"]);
        assert_eq!(full_names(&left), ["CAP_NET_BIND_SERVICE"]);
        assert!(set(false, &["ALL"], &["all"]).is_empty());
    }

    #[test]
    fn default_set_less_one_plus_one() {
        let set = set(false, &["CAP_NET_ADMIN"], &["chown"]);
        assert_eq!(set.len(), DEFAULT.len());
        assert!(set.contains("NET_ADMIN") && !set.contains("CHOWN"));
    }

    #[test]
    fn name_added_and_dropped_is_dropped() {
        assert!(!set(false, &["SYS_TIME"], &["CAP_SYS_TIME"]).contains("SYS_TIME"));
    }

    #[test]
    fn add_all_and_privileged_have_every_one() {
        assert_eq!(set(false, &["ALL"], &[]).len(), ALL.len());
        assert_eq!(set(false, &["ALL"], &["CHOWN"]).len(), ALL.len() - 1);
        assert_eq!(set(true, &[], &["ALL", "CHOWN"]).len(), ALL.len());
    }

    #[test]
    fn names_are_known_in_every_form_and_others_not_at_all() {
        for name in ["SYS_ADMIN", "sys_admin", "CAP_SYS_ADMIN", "cap_sys_admin"] {
            assert_eq!(parse(name), Some(Named::One("SYS_ADMIN")), "{name}");
        }
        for name in ["", "FLY", "CAP_", "CAP_CAP_CHOWN", " CHOWN"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
