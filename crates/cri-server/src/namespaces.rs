//! Namespaces: a pod's are its VM's; the node's cannot be had.

use crate::error::CriError;
use cri_api::v1::{NamespaceMode, NamespaceOption};
use sandbox::PidNamespace;

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
    check_user_namespace(context, options)
}

fn check_user_namespace(context: &str, options: &NamespaceOption) -> Result<(), CriError> {
    let Some(user) = &options.userns_options else {
        return Ok(());
    };
    let field = format!("{context}.namespace_options.userns_options");
    if mode(context, "userns_options.mode", user.mode)? != NamespaceMode::Node {
        return Err(CriError::invalid(
            field,
            "user namespaces (hostUsers: false) are not supported; the pod's users are those of its own kernel and already none of the node's",
        ));
    }
    if !user.uids.is_empty() || !user.gids.is_empty() {
        return Err(CriError::invalid(
            field,
            "mappings need the mode POD, which is not supported",
        ));
    }
    Ok(())
}

/// Whether the containers of a sandbox share one PID namespace.
pub(crate) fn of_sandbox(context: &str, options: &NamespaceOption) -> Result<bool, CriError> {
    check_common(context, options)?;
    match mode(context, "pid", options.pid)? {
        NamespaceMode::Pod => Ok(true),
        NamespaceMode::Container => Ok(false),
        _ => Err(CriError::invalid(
            format!("{context}.namespace_options.pid"),
            "a sandbox takes POD or CONTAINER; TARGET is for containers",
        )),
    }
}

/// Whose processes a container sees. `target` finds the full id of the container
/// with that id.
pub(crate) fn of_container(
    context: &str,
    options: Option<&NamespaceOption>,
    target: impl FnOnce(&str) -> Result<String, CriError>,
) -> Result<PidNamespace, CriError> {
    let Some(options) = options else {
        return Ok(PidNamespace::Default);
    };
    check_common(context, options)?;
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
    use cri_api::v1::UserNamespace;

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
            assert!(of_container("c", Some(&given), |_| panic!("no target")).is_err());
        }
    }

    #[test]
    fn process_namespaces_follow_the_request() {
        assert!(of_sandbox("c", &options(Pod, Pod, Pod)).unwrap());
        assert!(!of_sandbox("c", &options(Pod, Container, Pod)).unwrap());
        assert!(of_sandbox("c", &options(Pod, Target, Pod)).is_err());
        let of = |given: Option<NamespaceOption>| {
            of_container("c", given.as_ref(), |id| Ok(format!("{id}-full"))).unwrap()
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
        assert!(of_container("c", Some(&none), |_| panic!("no target")).is_err());
    }

    #[test]
    fn user_namespaces_are_refused_unless_they_are_the_nodes() {
        let with = |mode: NamespaceMode| NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: mode.into(),
                ..UserNamespace::default()
            }),
            ..NamespaceOption::default()
        };
        assert!(of_sandbox("c", &with(Node)).is_ok());
        assert!(of_sandbox("c", &with(Pod)).is_err());
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
