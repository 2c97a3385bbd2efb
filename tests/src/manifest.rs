//! Pod manifests for tests, as JSON.

use crate::IMAGE;
use serde_json::{Value, json};

/// A pod that is not restarted: its containers, and what else its spec has.
pub fn pod(name: &str, containers: &[Value], spec: Value) -> String {
    let mut manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": containers,
        },
    });
    merge(&mut manifest["spec"], spec);
    manifest.to_string()
}

/// A busybox container that runs a shell script, and what else it has.
pub fn container(name: &str, script: &str, extra: Value) -> Value {
    let mut container = json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
    });
    merge(&mut container, extra);
    container
}

/// A pod of one container named `c`.
pub fn one(name: &str, script: &str, extra: Value) -> String {
    pod(name, &[container("c", script, extra)], json!({}))
}

/// A ConfigMap with these keys.
pub fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A Secret with these keys, as text.
pub fn secret(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// A stream of documents.
pub fn documents(documents: &[Value]) -> String {
    let texts: Vec<String> = documents.iter().map(Value::to_string).collect();
    texts.join("\n---\n")
}

/// Puts the fields of `from` into `to`.
fn merge(to: &mut Value, from: Value) {
    if let (Some(to), Value::Object(from)) = (to.as_object_mut(), from) {
        to.extend(from);
    }
}
