//! Namespaces: a pod's are its VM's; the node's cannot be had.

use crate::error::CriError;
use cri_api::v1::{IdMapping, NamespaceMode, NamespaceOption};
use sandbox::{IdRange, PidNamespace, UserNamespace};

/// Why the node's namespace is refused, and what to do instead.
fn node_refused(context: &str, kind: &str, pod_field: &str, instead: &str) -> CriError {
    CriError::invalid(
        format!("{context}.namespace_options.{kind}"),
        format!(
            "NODE ({pod_field}) is not possible: the pod is a virtual machine with a kernel of its own and shares no namespace with the node; {instead}"
        ),
    )
}

fn mode(context: &str, kind: &str, value: i32) -> Result<NamespaceMode, CriError> {
    NamespaceMode::try_from(value).map_err(|_| {
        CriError::invalid(
            format!("{context}.namespace_options.{kind}"),
            format!("{value} is no namespace mode"),
        )
    })
}

/// Refuses what neither a sandbox nor a container can have.
fn check_common(context: &str, options: &NamespaceOption) -> Result<(), CriError> {
    let others = [
        (
            "network",
            options.network,
            "hostNetwork",
            "use a pod network, or run the pod with another RuntimeClass",
        ),
        (
            "ipc",
            options.ipc,
            "hostIPC",
            "share memory between the containers of one pod, or run the pod with another RuntimeClass",
        ),
    ];
    for (kind, value, pod_field, instead) in others {
        match mode(context, kind, value)? {
            NamespaceMode::Pod => {}
            NamespaceMode::Node => return Err(node_refused(context, kind, pod_field, instead)),
            other => {
                return Err(CriError::invalid(
                    format!("{context}.namespace_options.{kind}"),
                    format!(
                        "{} is not possible; containers share their pod's: POD",
                        other.as_str_name()
                    ),
                ));
            }
        }
    }
    if mode(context, "pid", options.pid)? == NamespaceMode::Node {
        let instead = "use shareProcessNamespace to see the pod's processes, or run the pod with another RuntimeClass";
        return Err(node_refused(context, "pid", "hostPID", instead));
    }
    Ok(())
}

/// The user namespace that is asked for; `None`: nothing is said.
fn user_namespace(context: &str, options: &NamespaceOption) -> Result<Option<Users>, CriError> {
    let Some(wanted) = &options.userns_options else {
        return Ok(None);
    };
    let field = format!("{context}.namespace_options.userns_options");
    match mode(context, "userns_options.mode", wanted.mode)? {
        NamespaceMode::Node if wanted.uids.is_empty() && wanted.gids.is_empty() => {
            Ok(Some(Users::Guest))
        }
        NamespaceMode::Node => Err(CriError::invalid(
            field,
            "mappings need the mode POD; NODE has none",
        )),
        NamespaceMode::Pod => Ok(Some(Users::Own(UserNamespace {
            uids: id_range(&format!("{field}.uids"), &wanted.uids)?,
            gids: id_range(&format!("{field}.gids"), &wanted.gids)?,
        }))),
        other => Err(CriError::invalid(
            format!("{field}.mode"),
            format!(
                "{} is not possible; a user namespace is the pod's: POD, or NODE for none",
                other.as_str_name()
            ),
        )),
    }
}

/// Whose ids users are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    /// NODE: a pod's node is its guest.
    Guest,
    Own(UserNamespace),
}

impl Users {
    fn namespace(self) -> Option<UserNamespace> {
        match self {
            Self::Guest => None,
            Self::Own(namespace) => Some(namespace),
        }
    }
}

/// The one mapping that is possible: of the ids from 0 on.
pub(crate) fn id_range(field: &str, mappings: &[IdMapping]) -> Result<IdRange, CriError> {
    let refuse = |message: String| Err(CriError::invalid(field, message));
    let [mapping] = mappings else {
        return refuse(format!(
            "{} mappings; exactly one is possible, of the ids from 0 on",
            mappings.len()
        ));
    };
    let IdMapping {
        host_id,
        container_id,
        length,
    } = *mapping;
    if container_id != 0 {
        return refuse(format!(
            "container_id {container_id}: root must be mapped; let it be 0"
        ));
    }
    if host_id == 0 {
        return refuse("host_id 0 is root; map to other ids".to_owned());
    }
    // The last number of all is no id.
    if length == 0 || host_id.checked_add(length).is_none() {
        return refuse(format!(
            "length {length} from host_id {host_id} on: must be at least 1, to 4294967294"
        ));
    }
    Ok(IdRange {
        first: host_id,
        count: length,
    })
}

/// The namespaces of a sandbox that are not always its VM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfSandbox {
    /// Its containers share one PID namespace.
    pub(crate) share_process_namespace: bool,
    pub(crate) user_namespace: Option<UserNamespace>,
}

/// Those of a sandbox.
pub(crate) fn of_sandbox(context: &str, options: &NamespaceOption) -> Result<OfSandbox, CriError> {
    check_common(context, options)?;
    let share_process_namespace = match mode(context, "pid", options.pid)? {
        NamespaceMode::Pod => true,
        NamespaceMode::Container => false,
        _ => {
            return Err(CriError::invalid(
                format!("{context}.namespace_options.pid"),
                "a sandbox takes POD or CONTAINER; TARGET is for containers",
            ));
        }
    };
    Ok(OfSandbox {
        share_process_namespace,
        user_namespace: user_namespace(context, options)?.and_then(Users::namespace),
    })
}

/// Whose processes a container sees. `target` finds the full id of the container
/// with that id; `own` is the sandbox's user namespace.
pub(crate) fn of_container(
    context: &str,
    options: Option<&NamespaceOption>,
    own: Option<UserNamespace>,
    target: impl FnOnce(&str) -> Result<String, CriError>,
) -> Result<PidNamespace, CriError> {
    let Some(options) = options else {
        return Ok(PidNamespace::Default);
    };
    check_common(context, options)?;
    if let Some(users) = user_namespace(context, options)?
        && users.namespace() != own
    {
        return Err(CriError::invalid(
            format!("{context}.namespace_options.userns_options"),
            "not the sandbox's; all containers of a pod share its user namespace: give the same options",
        ));
    }
    match mode(context, "pid", options.pid)? {
        NamespaceMode::Pod => Ok(PidNamespace::Pod),
        NamespaceMode::Target if options.target_id.is_empty() => Err(CriError::invalid(
            format!("{context}.namespace_options.target_id"),
            "required with pid TARGET",
        )),
        NamespaceMode::Target => target(&options.target_id).map(PidNamespace::Target),
        _ => Ok(PidNamespace::Container),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri_api::v1::UserNamespace as Asked;

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> NamespaceOption {
        NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            ..NamespaceOption::default()
        }
    }

    use NamespaceMode::{Container, Node, Pod, Target};

    #[test]
    fn the_nodes_namespaces_are_refused_with_reason_and_alternative() {
        for (given, field, pod_field) in [
            (
                options(Node, Pod, Pod),
                "c.namespace_options.network",
                "hostNetwork",
            ),
            (
                options(Pod, Node, Pod),
                "c.namespace_options.pid",
                "hostPID",
            ),
            (
                options(Pod, Pod, Node),
                "c.namespace_options.ipc",
                "hostIPC",
            ),
        ] {
            let error = of_sandbox("c", &given).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
            assert!(
                error.contains(pod_field) && error.contains("RuntimeClass"),
                "{error}"
            );
            assert!(of_container("c", Some(&given), None, |_| panic!("no target")).is_err());
        }
    }

    #[test]
    fn process_namespaces_follow_the_request() {
        let shares = |given| of_sandbox("c", &given).unwrap().share_process_namespace;
        assert!(shares(options(Pod, Pod, Pod)));
        assert!(!shares(options(Pod, Container, Pod)));
        assert!(of_sandbox("c", &options(Pod, Target, Pod)).is_err());
        let of = |given: Option<NamespaceOption>| {
            of_container("c", given.as_ref(), None, |id| Ok(format!("{id}-full"))).unwrap()
        };
        assert_eq!(of(None), PidNamespace::Default);
        assert_eq!(of(Some(options(Pod, Pod, Pod))), PidNamespace::Pod);
        assert_eq!(
            of(Some(options(Pod, Container, Pod))),
            PidNamespace::Container
        );
        let target = NamespaceOption {
            target_id: "a".into(),
            ..options(Pod, Target, Pod)
        };
        assert_eq!(of(Some(target)), PidNamespace::Target("a-full".into()));
        let none = options(Pod, Target, Pod);
        assert!(of_container("c", Some(&none), None, |_| panic!("no target")).is_err());
    }

    const MAPPING: IdMapping = IdMapping {
        host_id: 1000,
        container_id: 0,
        length: 100_000,
    };

    fn users(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> NamespaceOption {
        NamespaceOption {
            userns_options: Some(Asked {
                mode: mode.into(),
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            }),
            ..NamespaceOption::default()
        }
    }

    #[test]
    fn a_user_namespace_has_one_mapping_of_root_and_those_after_it() {
        let none = of_sandbox("c", &users(Node, &[], &[])).unwrap();
        assert_eq!(none.user_namespace, None);
        let given = users(Pod, &[MAPPING], &[MAPPING]);
        let made = of_sandbox("c", &given).unwrap().user_namespace.unwrap();
        let range = IdRange {
            first: 1000,
            count: 100_000,
        };
        assert_eq!((made.uids, made.gids), (range, range));
        let with = |change: fn(&mut IdMapping)| {
            let mut mapping = MAPPING;
            change(&mut mapping);
            vec![mapping]
        };
        for wrong in [
            vec![],
            vec![MAPPING; 2],
            with(|m| m.container_id = 1),
            with(|m| m.host_id = 0),
            with(|m| m.length = 0),
            with(|m| m.host_id = u32::MAX - 99_999),
        ] {
            for (kind, given) in [
                ("uids", users(Pod, &wrong, &[MAPPING])),
                ("gids", users(Pod, &[MAPPING], &wrong)),
            ] {
                let error = of_sandbox("c", &given).unwrap_err().to_string();
                let field = format!("c.namespace_options.userns_options.{kind}:");
                assert!(error.starts_with(&field), "{error}");
            }
        }
        for (given, part) in [
            (users(Node, &[MAPPING], &[]), "mode POD"),
            (users(Container, &[MAPPING], &[MAPPING]), "CONTAINER"),
            (users(Target, &[MAPPING], &[MAPPING]), "TARGET"),
        ] {
            let error = of_sandbox("c", &given).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn containers_have_their_sandboxs_user_namespace() {
        let given = users(Pod, &[MAPPING], &[MAPPING]);
        let own = of_sandbox("c", &given).unwrap().user_namespace;
        let other = IdMapping {
            length: 99_999,
            ..MAPPING
        };
        let unsaid = NamespaceOption::default();
        let node = users(Node, &[], &[]);
        for (options, own, fits) in [
            (&given, own, true),
            (&unsaid, own, true),
            (&unsaid, None, true),
            (&node, None, true),
            (&node, own, false),
            (&given, None, false),
            (&users(Pod, &[MAPPING], &[other]), own, false),
        ] {
            let made = of_container("c", Some(options), own, |_| panic!("no target"));
            match made {
                Ok(_) => assert!(fits, "{options:?}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!fits && error.contains("userns_options"), "{error}");
                }
            }
        }
    }

    #[test]
    fn unknown_modes_are_refused() {
        let unknown = NamespaceOption {
            ipc: 9,
            ..NamespaceOption::default()
        };
        let error = of_sandbox("c", &unknown).unwrap_err();
        assert!(error.to_string().contains("ipc"), "{error}");
    }
}
