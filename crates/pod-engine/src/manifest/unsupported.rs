//! Fields that are not honoured: refused by path, unless they say what is done
//! anyway (an empty list, `hostNetwork: false`).

use super::{FieldError, ephemeral};
use serde_json::{Value, json};

/// What to say of the field at `path` (of `tree`) that no type of ours knows;
/// nothing if it changes nothing.
pub(super) fn judge(tree: &Value, path: &[String]) -> Option<FieldError> {
    let value = lookup(tree, path)?;
    if is_nothing(value) || defaults(&pattern(path)).contains(value) {
        return None;
    }
    let reason = match path {
        [_, list, _, field] if list == "ephemeralContainers" && ephemeral::is_barred(field) => {
            ephemeral::BARRED.into()
        }
        _ => reason(&pattern(path), value),
    };
    Some(FieldError::new(shown(path), reason))
}

fn lookup<'a>(tree: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |value, part| match value {
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        Value::Object(map) => map.get(part),
        _ => None,
    })
}

/// Null, or an empty list or map: Kubernetes takes these for an absent field.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        // `volumes[].hostPath: {}` names a kind of volume even when empty, but
        // its missing fields are found by the volume's own check.
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The path as the API server writes it.
fn shown(path: &[String]) -> String {
    let mut text = String::new();
    for part in path {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            text.push_str(&format!("[{part}]"));
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(part);
        }
    }
    text
}

/// The path with `*` for each index and `spec.containers` for all kinds.
fn pattern(path: &[String]) -> String {
    let parts: Vec<&str> = path
        .iter()
        .map(|part| match part.as_str() {
            index if index.bytes().all(|b| b.is_ascii_digit()) => "*",
            "initContainers" | "ephemeralContainers" => "containers",
            other => other,
        })
        .collect();
    parts.join(".")
}

/// Values that say what is done anyway.
fn defaults(pattern: &str) -> Vec<Value> {
    match pattern {
        "spec.hostNetwork" | "spec.hostPID" | "spec.hostIPC" => vec![json!(false)],
        // There are no services to make links for.
        "spec.enableServiceLinks" => vec![json!(true), json!(false)],
        "spec.setHostnameAsFQDN" | "spec.automountServiceAccountToken" => vec![json!(false)],
        "spec.schedulerName" => vec![json!("default-scheduler")],
        "spec.preemptionPolicy" => vec![json!("PreemptLowerPriority")],
        "spec.priority" => vec![json!(0)],
        "spec.serviceAccountName" | "spec.serviceAccount" => vec![json!("default"), json!("")],
        "spec.os.name" => vec![json!("linux")],
        "spec.os" => vec![json!({"name": "linux"})],
        "spec.securityContext.supplementalGroupsPolicy" => vec![json!("Merge")],
        "spec.securityContext.seccompProfile"
        | "spec.containers.*.securityContext.seccompProfile" => {
            vec![json!({"type": "Unconfined"})]
        }
        "spec.containers.*.securityContext.procMount" => vec![json!("Default")],
        "spec.containers.*.terminationMessagePath" => vec![json!("/dev/termination-log")],
        "spec.containers.*.terminationMessagePolicy" => vec![json!("File")],
        "spec.subdomain" | "spec.priorityClassName" => vec![json!("")],
        _ => Vec::new(),
    }
}

fn reason(pattern: &str, value: &Value) -> String {
    let yes = value == &json!(true);
    match pattern {
        "spec.hostNetwork" if yes => "cannot be had: the pod runs in a virtual machine with a \
             network of its own; use ports instead"
            .into(),
        "spec.hostPID" if yes => "cannot be had: the pod runs in a virtual machine and cannot see \
             the host's processes; shareProcessNamespace shares the pod's own"
            .into(),
        "spec.hostIPC" if yes => {
            "cannot be had: the pod runs in a virtual machine; its containers \
             share the pod's own IPC namespace"
                .into()
        }
        "spec.hostNetwork" | "spec.hostPID" | "spec.hostIPC" => "must be true or false".into(),
        "spec.volumes.*.projected.sources.*.serviceAccountToken" => {
            "cannot be had: there is no API server that would issue a token".into()
        }
        _ => "not supported yet".into(),
    }
}
