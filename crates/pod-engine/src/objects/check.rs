//! One document to one checked object: the API server's checks, and this node's.

use super::types::{NodeTerm, PersistentVolumeSpec};
use super::{Kind, Object, io_limits};
use crate::manifest::{Faults, FieldError, check_metadata, typed};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most bytes of an object's data, as the API server has it.
const MAX_DATA: usize = 1 << 20;
/// Longest key of a ConfigMap or Secret.
const MAX_KEY: usize = 253;
const ACCESS_MODES: [&str; 4] = [
    "ReadWriteOnce",
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOncePod",
];
/// Keys that Secrets of a type must have.
const SECRET_TYPES: [(&str, &[&str]); 6] = [
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
    ("kubernetes.io/basic-auth", &[]),
    ("Opaque", &[]),
];

/// Reads a document of `kind`; its faults go to `errors`, by path below `name`.
pub(crate) fn read(kind: Kind, tree: &Value, errors: &mut Vec<FieldError>) -> Option<Object> {
    let mut tree = tree.clone();
    if let Some(map) = tree.as_object_mut() {
        // Looked at by who calls this.
        map.remove("apiVersion");
        map.remove("kind");
    }
    let own = errors.len();
    let object = match kind {
        Kind::ConfigMap => typed(&tree, errors).map(Object::ConfigMap),
        Kind::Secret => typed(&tree, errors).map(Object::Secret),
        Kind::PersistentVolume => typed(&tree, errors).map(Object::PersistentVolume),
        Kind::PersistentVolumeClaim => typed(&tree, errors).map(Object::PersistentVolumeClaim),
    };
    let mut object = match object {
        Ok(object) => object,
        Err(mut error) => {
            let secret = kind == Kind::Secret
                && ["data", "stringData"]
                    .iter()
                    .any(|f| error.path.starts_with(f));
            if secret {
                // The parser's message says what it found.
                error.message = "must be text, under data in base64".to_owned();
            }
            errors.push(error);
            return None;
        }
    };
    if let Object::Secret(secret) = &mut object {
        for (key, text) in std::mem::take(&mut secret.string_data) {
            secret.data.insert(key, super::Bytes(text.into_bytes()));
        }
        if secret.kind.is_empty() {
            secret.kind = "Opaque".to_owned();
        }
    }
    let mut faults = Faults {
        errors,
        // Objects name no users.
        greatest_id: 0,
    };
    check(&object, &mut faults);
    (errors.len() == own).then_some(object)
}

fn check(object: &Object, faults: &mut Faults<'_>) {
    let metadata = object.metadata();
    check_metadata(metadata, faults);
    faults.require(
        metadata.generate_name.is_empty(),
        "metadata.generateName",
        "must be empty: pods refer to an object by its name",
    );
    faults.require(
        object.kind().is_namespaced() || metadata.namespace.is_empty(),
        "metadata.namespace",
        "must be empty: a PersistentVolume belongs to no namespace",
    );
    data(object, faults);
    match object {
        Object::ConfigMap(map) => {
            for key in map.binary_data.keys().filter(|k| map.data.contains_key(*k)) {
                faults.add(format!("binaryData[{key}]"), "is in data, too");
            }
        }
        Object::Secret(secret) => secret_type(&secret.kind, &secret.data, faults),
        Object::PersistentVolume(volume) => {
            persistent_volume(&volume.spec, faults);
            for (field, message) in io_limits(&volume.metadata.annotations).err().into_iter() {
                faults.add(field, message);
            }
        }
        Object::PersistentVolumeClaim(claim) => {
            access_modes(&claim.spec.access_modes, faults);
            volume_mode(&claim.spec.volume_mode, faults);
            let storage = claim.spec.resources.requests.get("storage");
            faults.require(
                storage.is_some_and(|amount| !amount.is_negative()),
                "spec.resources.requests.storage",
                "required",
            );
        }
    }
}

fn data(object: &Object, faults: &mut Faults<'_>) {
    let sizes = object.data_sizes();
    for (key, _) in &sizes {
        faults.require(
            is_key(key),
            &format!("data[{}]", key.chars().take(MAX_KEY).collect::<String>()),
            "a key has at most 253 letters, digits, '-', '_' and '.', and does not begin with '..'",
        );
    }
    let bytes: usize = sizes.iter().map(|(key, len)| key.len() + len).sum();
    faults.require(
        bytes <= MAX_DATA,
        "data",
        &format!("{bytes} bytes; an object has at most {MAX_DATA}"),
    );
}

/// As Kubernetes has it for keys, which become files.
pub(crate) fn is_key(text: &str) -> bool {
    (1..=MAX_KEY).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text != "."
        && !text.starts_with("..")
}

fn secret_type<V>(kind: &str, data: &BTreeMap<String, V>, faults: &mut Faults<'_>) {
    let Some((_, keys)) = SECRET_TYPES.iter().find(|(name, _)| *name == kind) else {
        faults.require(
            !kind.starts_with("kubernetes.io/"),
            "type",
            "is none of the types that are used without an API server",
        );
        return;
    };
    for key in *keys {
        faults.require(
            data.contains_key(*key),
            &format!("data[{key}]"),
            "required by the Secret's type",
        );
    }
}

fn persistent_volume(spec: &PersistentVolumeSpec, faults: &mut Faults<'_>) {
    let storage = spec.capacity.get("storage");
    faults.require(
        storage.is_some_and(|amount| !amount.is_negative()),
        "spec.capacity.storage",
        "required",
    );
    access_modes(&spec.access_modes, faults);
    volume_mode(&spec.volume_mode, faults);
    faults.require(
        ["", "Retain"].contains(&spec.persistent_volume_reclaim_policy.as_str()),
        "spec.persistentVolumeReclaimPolicy",
        "must be Retain: what a claim leaves behind on the host is its owner's to delete",
    );
    match (&spec.local, &spec.host_path) {
        (Some(local), None) => check_path(&local.path, "spec.local.path", faults),
        (None, Some(host)) => check_host_path(host, "spec.hostPath", faults),
        _ => faults.add("spec", "must have one source, local or hostPath"),
    }
    faults.require(
        !spec.is_block() || spec.local.is_some(),
        "spec.volumeMode",
        "Block needs a local volume: a block device or a regular file of the host",
    );
    if let Some(local) = &spec.local {
        faults.require(
            ["", "ext4", "xfs"].contains(&local.fs_type.as_str()),
            "spec.local.fsType",
            "must be ext4 or xfs",
        );
    }
    if let Some(claim) = &spec.claim_ref {
        faults.require(!claim.name.is_empty(), "spec.claimRef.name", "required");
    }
    if let Some(affinity) = &spec.node_affinity {
        let terms = &affinity.required.node_selector_terms;
        let path = "spec.nodeAffinity.required.nodeSelectorTerms";
        let node = crate::facts::node_name();
        faults.require(
            terms.iter().any(|term| suits(term, &node)),
            path,
            &format!(
                "none of them is this node: it is known by kubernetes.io/hostname In [{node}]"
            ),
        );
    }
}

/// A term holds for this node.
fn suits(term: &NodeTerm, node: &str) -> bool {
    !term.match_expressions.is_empty()
        && term.match_expressions.iter().all(|expression| {
            expression.key == "kubernetes.io/hostname"
                && expression.operator == "In"
                && expression.values.iter().any(|value| value == node)
        })
}

fn access_modes(modes: &[String], faults: &mut Faults<'_>) {
    faults.require(!modes.is_empty(), "spec.accessModes", "required");
    for (i, mode) in modes.iter().enumerate() {
        faults.require(
            ACCESS_MODES.contains(&mode.as_str()),
            &format!("spec.accessModes[{i}]"),
            "must be ReadWriteOnce, ReadOnlyMany, ReadWriteMany or ReadWriteOncePod",
        );
    }
}

fn volume_mode(mode: &str, faults: &mut Faults<'_>) {
    faults.require(
        ["", "Filesystem", "Block"].contains(&mode),
        "spec.volumeMode",
        "must be Filesystem or Block",
    );
}

/// A path on the host that means what it says.
fn check_path(path: &str, field: &str, faults: &mut Faults<'_>) {
    faults.require(
        path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|p| p == ".."),
        field,
        "must be an absolute path without '..'",
    );
}

/// A path on the host and what should be there.
pub(crate) fn check_host_path(host: &super::HostPath, field: &str, faults: &mut Faults<'_>) {
    check_path(&host.path, &format!("{field}.path"), faults);
    match host.kind.as_str() {
        "" | "Directory" | "DirectoryOrCreate" | "File" | "FileOrCreate" => {}
        "Socket" | "CharDevice" | "BlockDevice" => faults.add(
            format!("{field}.type"),
            "cannot be had: the pod runs in a virtual machine, which shares directories and \
             regular files of the host, not its sockets and devices",
        ),
        other => faults.add(
            format!("{field}.type"),
            format!("{other:?}: must be Directory, DirectoryOrCreate, File or FileOrCreate"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(kind: Kind, tree: Value) -> Vec<String> {
        let mut errors = Vec::new();
        let object = read(kind, &tree, &mut errors);
        assert_eq!(object.is_none(), !errors.is_empty());
        errors.iter().map(ToString::to_string).collect()
    }

    fn named(rest: Value) -> Value {
        let mut tree = json!({"metadata": {"name": "x"}});
        if let (Some(tree), Value::Object(rest)) = (tree.as_object_mut(), rest) {
            tree.extend(rest);
        }
        tree
    }

    #[test]
    fn string_data_wins_over_data() {
        let tree = named(json!({"data": {"a": "MQ==", "b": "Mg=="}, "stringData": {"a": "x"}}));
        let mut errors = Vec::new();
        let Some(Object::Secret(secret)) = read(Kind::Secret, &tree, &mut errors) else {
            panic!("{errors:?}");
        };
        assert_eq!(secret.data["a"].0, b"x");
        assert_eq!(secret.data["b"].0, b"2");
        assert_eq!(secret.kind, "Opaque");
    }

    #[test]
    fn faults_of_data_are_named_without_values() {
        let lines = faults(
            Kind::ConfigMap,
            named(json!({"data": {"../x": "v", "a b": "v"}, "binaryData": {"..a": "AA=="}})),
        );
        assert_eq!(lines.len(), 3, "{lines:?}");
        let lines = faults(
            Kind::Secret,
            named(json!({"data": {"k": "not base64, hidden"}})),
        );
        assert!(
            lines[0].starts_with("data.k: ") && !lines[0].contains("hidden"),
            "{lines:?}"
        );
        let lines = faults(Kind::Secret, named(json!({"stringData": {"k": 815}})));
        assert!(!lines[0].contains("815"), "{lines:?}");
        let big = "x".repeat(MAX_DATA);
        let lines = faults(Kind::ConfigMap, named(json!({"data": {"k": big}})));
        assert!(lines[0].contains("at most 1048576"), "{lines:?}");
    }

    #[test]
    fn types_of_secrets_ask_for_their_keys() {
        let lines = faults(Kind::Secret, named(json!({"type": "kubernetes.io/tls"})));
        assert_eq!(lines.len(), 2);
        let token = json!({"type": "kubernetes.io/service-account-token"});
        assert!(faults(Kind::Secret, named(token))[0].starts_with("type"));
        assert!(faults(Kind::Secret, named(json!({"type": "example.org/own"}))).is_empty());
    }

    #[test]
    fn volumes_of_other_kinds_nodes_and_policies_are_refused() {
        let with = |spec: Value| {
            let mut all = json!({
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "local": {"path": "/srv"},
            });
            all.as_object_mut()
                .unwrap()
                .extend(spec.as_object().unwrap().clone());
            faults(Kind::PersistentVolume, named(json!({"spec": all}))).join("\n")
        };
        assert_eq!(with(json!({})), "");
        let node = crate::facts::node_name();
        let affinity = |node: &str| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
            ]}]}}})
        };
        assert_eq!(with(affinity(&node)), "");
        assert!(with(affinity("no-such-node")).starts_with("spec.nodeAffinity"));
        assert_eq!(with(json!({"volumeMode": "Block"})), "");
        assert!(with(json!({"volumeMode": "Tape"})).starts_with("spec.volumeMode"));
        let on_host = json!({"local": null, "hostPath": {"path": "/x"}, "volumeMode": "Block"});
        assert!(with(on_host).contains("Block needs a local volume"));
        let vfat = json!({"local": {"path": "/srv", "fsType": "vfat"}});
        assert!(with(vfat).starts_with("spec.local.fsType"));
        assert!(with(json!({"persistentVolumeReclaimPolicy": "Delete"})).contains("Retain"));
        assert!(with(json!({"local": {"path": "../x"}})).starts_with("spec.local.path"));
        assert!(with(json!({"hostPath": {"path": "/x"}})).contains("one source"));
        assert!(with(json!({"nfs": {"server": "x"}})).contains("spec.nfs: not supported"));
        let socket = json!({"local": null, "hostPath": {"path": "/x", "type": "Socket"}});
        assert!(with(socket).contains("spec.hostPath.type: cannot be had"));
    }

    #[test]
    fn claims_and_volumes_need_amounts_and_modes() {
        let lines = faults(Kind::PersistentVolumeClaim, named(json!({"spec": {}})));
        assert_eq!(lines.len(), 2, "{lines:?}");
        let lines = faults(
            Kind::PersistentVolume,
            named(json!({"metadata": {"name": "x", "namespace": "y"}, "spec": {}})),
        );
        assert!(
            lines.iter().any(|l| l.starts_with("metadata.namespace")),
            "{lines:?}"
        );
    }
}
