//! Linux capabilities by name, and the set a container gets.

use crate::error::CriError;
use cri_api::v1::Capability;
use sandbox::capabilities::{ALL, DEFAULT};
use std::collections::BTreeSet;

/// What a container's first process is granted, as "CAP_X", sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) capabilities: Vec<String>,
    /// Part of them.
    pub(crate) ambient: Vec<String>,
}

/// A name as requests have it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    All,
    One(&'static str),
}

fn parse(field: &str, names: &[String]) -> Result<Vec<Named>, CriError> {
    let of = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            return Some(Named::All);
        }
        let known = ALL.iter().find(|known| **known == bare);
        known.map(|known| Named::One(known))
    };
    names
        .iter()
        .map(|name| {
            of(name).ok_or_else(|| {
                CriError::invalid(
                    format!("config.linux.security_context.capabilities.{field}"),
                    format!("{name:?} is no capability that the guest's kernel knows"),
                )
            })
        })
        .collect()
}

/// The default set or, privileged, every one; then `ALL` added, `ALL` dropped,
/// single names added, single names dropped, as Kubernetes' runtimes agree.
pub(crate) fn granted(privileged: bool, wish: &Capability) -> Result<Granted, CriError> {
    let add = parse("add_capabilities", &wish.add_capabilities)?;
    let drop = parse("drop_capabilities", &wish.drop_capabilities)?;
    let wanted = parse("add_ambient_capabilities", &wish.add_ambient_capabilities)?;
    let singles = |list: &[Named]| -> Vec<&'static str> {
        let one = |named: &Named| match named {
            Named::One(name) => Some(*name),
            Named::All => None,
        };
        list.iter().filter_map(one).collect()
    };
    let mut set: BTreeSet<&str> = DEFAULT.into();
    if privileged || add.contains(&Named::All) {
        set = ALL.into();
    }
    if !privileged {
        if drop.contains(&Named::All) {
            set.clear();
        }
        set.extend(singles(&add));
        for name in singles(&drop) {
            set.remove(name);
        }
    }
    let ambient: BTreeSet<&str> = if wanted.contains(&Named::All) {
        ALL.into()
    } else {
        singles(&wanted).into_iter().collect()
    };
    set.extend(&ambient);
    let named = |set: BTreeSet<&str>| set.into_iter().map(|name| format!("CAP_{name}")).collect();
    Ok(Granted {
        capabilities: named(set),
        ambient: named(ambient),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(add: &[&str], drop: &[&str], ambient: &[&str]) -> Capability {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            add_ambient_capabilities: owned(ambient),
        }
    }

    fn set(privileged: bool, add: &[&str], drop: &[&str]) -> Vec<String> {
        granted(privileged, &wish(add, drop, &[]))
            .unwrap()
            .capabilities
    }

    #[test]
    fn dropping_all_leaves_what_is_added() {
        assert_eq!(
            set(false, &["NET_BIND_SERVICE"], &["ALL"]),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert!(set(false, &["ALL"], &["all"]).is_empty());
    }

    #[test]
    fn default_set_less_one_plus_one() {
        let set = set(false, &["CAP_NET_ADMIN"], &["chown"]);
        assert_eq!(set.len(), DEFAULT.len());
        assert!(set.contains(&"CAP_NET_ADMIN".to_owned()));
        assert!(!set.contains(&"CAP_CHOWN".to_owned()));
    }

    #[test]
    fn add_all_and_privileged_have_every_one() {
        assert_eq!(set(false, &["ALL"], &[]).len(), ALL.len());
        assert_eq!(set(false, &["ALL"], &["CHOWN"]).len(), ALL.len() - 1);
        assert_eq!(set(true, &[], &["ALL"]).len(), ALL.len());
    }

    #[test]
    fn ambient_ones_are_in_every_set() {
        let granted = granted(false, &wish(&[], &["ALL"], &["NET_RAW"])).unwrap();
        assert_eq!(granted.capabilities, ["CAP_NET_RAW"]);
        assert_eq!(granted.ambient, ["CAP_NET_RAW"]);
    }

    #[test]
    fn unknown_names_are_refused_by_field() {
        let error = granted(false, &wish(&[], &["FLY"], &[])).unwrap_err();
        assert!(error.to_string().contains("drop_capabilities"), "{error}");
    }
}
