//! Linux capabilities by name, and the set a container gets.

use crate::manifest::Capabilities;
use sandbox::capabilities::{ALL, DEFAULT};
use std::collections::BTreeSet;

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
