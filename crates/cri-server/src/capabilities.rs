//! The capabilities of a container's request, by the rules that all containers of
//! this node have.

use crate::error::CriError;
use cri_api::v1::Capability;
use sandbox::capabilities::{ALL, Named, full_names, granted as by_rules, parse, singles};
use std::collections::BTreeSet;

/// What a container's first process is granted, as "CAP_X", sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) capabilities: Vec<String>,
    /// Part of them.
    pub(crate) ambient: Vec<String>,
}

fn list(field: &str, names: &[String]) -> Result<Vec<Named>, CriError> {
    let known = |name: &String| {
        parse(name).ok_or_else(|| {
            CriError::invalid(
                format!("config.linux.security_context.capabilities.{field}"),
                format!("{name:?} is no capability that the guest's kernel knows"),
            )
        })
    };
    names.iter().map(known).collect()
}

/// What the request adds to and drops from the set; ambient ones are in it.
pub(crate) fn granted(privileged: bool, wish: &Capability) -> Result<Granted, CriError> {
    let add = list("add_capabilities", &wish.add_capabilities)?;
    let drop = list("drop_capabilities", &wish.drop_capabilities)?;
    let wanted = list("add_ambient_capabilities", &wish.add_ambient_capabilities)?;
    let ambient: BTreeSet<_> = if wanted.contains(&Named::All) {
        ALL.into()
    } else {
        singles(&wanted).collect()
    };
    let mut set = by_rules(privileged, &add, &drop);
    set.extend(&ambient);
    Ok(Granted {
        capabilities: full_names(&set),
        ambient: full_names(&ambient),
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

    #[test]
    fn ambient_ones_are_in_every_set() {
        let granted = granted(false, &wish(&["CHOWN"], &["ALL"], &["NET_RAW"])).unwrap();
        assert_eq!(granted.capabilities, ["CAP_CHOWN", "CAP_NET_RAW"]);
        assert_eq!(granted.ambient, ["CAP_NET_RAW"]);
    }

    #[test]
    fn unknown_names_are_refused_by_field() {
        let error = granted(false, &wish(&[], &["FLY"], &[])).unwrap_err();
        assert!(error.to_string().contains("drop_capabilities"), "{error}");
    }
}
