//! Ephemeral containers: what they may not have, and how a pod comes to one.

use super::validate::Faults;
use super::{Container, FieldError, Manifest, ManifestError, PodSpec, Resources, read};
use serde_json::{Value, json};

/// What is said of a field that an ephemeral container cannot have.
pub(super) const BARRED: &str =
    "an ephemeral container cannot have this, as in Kubernetes; leave it out";

/// Whether a field that no type of ours knows is one of these.
pub(super) fn is_barred(field: &str) -> bool {
    [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
    ]
    .contains(&field)
}

/// Refuses a new pod that has some.
pub(super) fn refuse(pod: &Value, errors: &mut Vec<FieldError>) {
    let given = pod["spec"]["ephemeralContainers"].as_array();
    if given.is_some_and(|containers| !containers.is_empty()) {
        errors.push(FieldError::new(
            "spec.ephemeralContainers",
            "cannot be given with a new pod; add them to the running one by `spherule debug`",
        ));
    }
}

/// Reads a `v1.EphemeralContainer` (YAML or JSON) for a pod whose accepted manifest is
/// `pod`, JSON; returns it, and the manifest with it.
///
/// # Errors
/// Lists every fault of the container, by its path in the pod.
pub(crate) fn with_ephemeral(pod: &str, text: &str) -> Result<(Container, Value), ManifestError> {
    let fault = |message: String| ManifestError::Fields(vec![FieldError::new("", message)]);
    let mut documents = read::read(text)?;
    let container = match (documents.pop(), documents.len()) {
        (Some(container @ Value::Object(_)), 0) => container,
        (_, more) => {
            let what = if more > 0 {
                "several documents"
            } else {
                "no map"
            };
            return Err(fault(format!(
                "the container is {what}; it must be one v1.EphemeralContainer"
            )));
        }
    };
    let mut tree: Value = serde_json::from_str(pod)
        .map_err(|error| fault(format!("the pod's own manifest cannot be read: {error}")))?;
    match &mut tree["spec"]["ephemeralContainers"] {
        Value::Array(containers) => containers.push(container),
        absent => *absent = json!([container]),
    }
    let (mut manifest, tree) = Manifest::accepted(tree)?;
    let added = manifest.spec.ephemeral_containers.pop();
    Ok((added.ok_or(ManifestError::Empty)?, tree))
}

/// The checks that hold for ephemeral containers only.
pub(super) fn check(spec: &PodSpec, faults: &mut Faults<'_>) {
    let others = || spec.init_containers.iter().chain(&spec.containers);
    for (i, item) in spec.ephemeral_containers.iter().enumerate() {
        let path = format!("spec.ephemeralContainers[{i}]");
        barred(&path, item, faults);
        let target = &item.target_container_name;
        if !target.is_empty() && !others().any(|c| c.name == *target) {
            let known: Vec<&str> = others().map(|c| c.name.as_str()).collect();
            faults.add(
                format!("{path}.targetContainerName"),
                format!(
                    "the pod has no container {target:?}; it has: {}",
                    known.join(", ")
                ),
            );
        }
    }
    for (list, containers) in [
        ("initContainers", &spec.init_containers),
        ("containers", &spec.containers),
    ] {
        for (i, item) in containers.iter().enumerate() {
            faults.require(
                item.target_container_name.is_empty(),
                &format!("spec.{list}[{i}].targetContainerName"),
                "only ephemeral containers have one",
            );
        }
    }
}

fn barred(path: &str, item: &Container, faults: &mut Faults<'_>) {
    faults.require(item.ports.is_empty(), &format!("{path}.ports"), BARRED);
    let limits = item.resources != Resources::default();
    faults.require(!limits, &format!("{path}.resources"), BARRED);
    for (i, mount) in item.volume_mounts.iter().enumerate() {
        for (field, sub_path) in [
            ("subPath", &mount.sub_path),
            ("subPathExpr", &mount.sub_path_expr),
        ] {
            let path = format!("{path}.volumeMounts[{i}].{field}");
            faults.require(sub_path.is_empty(), &path, BARRED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::NodeLimits;

    const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "c", "image": "i"}],
        "ephemeralContainers": [{"name": "first", "image": "i", "targetContainerName": "c"}]}}"#;

    fn faults(container: &str) -> Vec<String> {
        match with_ephemeral(POD, container) {
            Err(ManifestError::Fields(errors)) => errors.iter().map(ToString::to_string).collect(),
            other => panic!("{container}: {other:?}"),
        }
    }

    #[test]
    fn container_is_added_to_the_manifest() {
        let yaml = "name: e\nimage: i\nstdin: true\nstdinOnce: true\ntty: true\n\
                    targetContainerName: c\nvolumeMounts: [{name: v, mountPath: /v}]\n";
        let (added, tree) = with_ephemeral(POD, yaml).unwrap();
        assert!(added.stdin && added.stdin_once && added.tty);
        assert_eq!(added.target_container_name, "c");
        let names = &tree["spec"]["ephemeralContainers"];
        assert_eq!(
            (&names[0]["name"], &names[1]["name"]),
            (&json!("first"), &json!("e"))
        );
        let again = with_ephemeral(&tree.to_string(), "{name: e, image: i}").unwrap_err();
        assert!(again.to_string().contains("another container"), "{again}");
    }

    #[test]
    fn what_it_cannot_have_is_named() {
        let lines = faults(
            "{name: c, image: i, targetContainerName: first, ports: [{containerPort: 80}],
             resources: {limits: {cpu: 1}}, livenessProbe: {exec: {command: [a]}}, lifecycle: {x: y},
             volumeMounts: [{name: v, mountPath: /v, subPath: s}], terminationMessagePath: /x}",
        );
        for part in [
            "name: \"c\" is the name of another",
            "targetContainerName: the pod has no container \"first\"; it has: c",
            "ports: an ephemeral container cannot have this",
            "resources: an ephemeral container cannot have this",
            "livenessProbe: an ephemeral container cannot have this",
            "lifecycle: an ephemeral container cannot have this",
            "volumeMounts[0].subPath: an ephemeral container cannot have this",
            "terminationMessagePath: not supported yet",
        ] {
            let whole = format!("spec.ephemeralContainers[1].{part}");
            assert!(
                lines.iter().any(|l| l.starts_with(&whole)),
                "{whole} in {lines:#?}"
            );
        }
        for (text, part) in [("- a", "no map"), ("{}\n---\n{}", "several documents")] {
            assert!(faults(text)[0].contains(part), "{text}");
        }
    }

    #[test]
    fn new_pods_and_other_containers_have_none_of_it() {
        let limits = NodeLimits {
            memory_mib: 1024,
            network: true,
        };
        let pod = POD.replace(
            "\"image\": \"i\"}],",
            "\"image\": \"i\", \"targetContainerName\": \"c\"}],",
        );
        let error = Manifest::parse(&pod, &limits).unwrap_err().to_string();
        for part in [
            "spec.ephemeralContainers: cannot be given",
            "spec.containers[0].targetContainerName: only ephemeral",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
