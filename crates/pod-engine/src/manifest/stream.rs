//! A stream of documents: at most one pod, and objects beside it.

use super::{FieldError, Manifest, ManifestError, NodeLimits, ephemeral, read, typed, validate};
use crate::objects::{self, Kind, Object};
use serde_json::Value;
use std::collections::BTreeSet;

/// Most bytes of a pod, as JSON.
const MAX_POD: usize = 1 << 20;

/// What a stream holds, all of it checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// The pod, and its document.
    pub pod: Option<(Manifest, Value)>,
    /// What was given with it.
    pub objects: Vec<Object>,
}

impl Stream {
    /// Reads YAML documents, or JSON values one after the other; a `v1.List` counts
    /// as what it lists.
    ///
    /// # Errors
    /// Lists every fault that was found, fields that are not honoured included.
    pub fn parse(text: &str, limits: &NodeLimits) -> Result<Self, ManifestError> {
        let documents = flatten(read::read(text)?);
        let mut errors = Vec::new();
        let mut stream = Self {
            pod: None,
            objects: Vec::new(),
        };
        let alone = documents.len() == 1;
        let mut pods = 0;
        for (i, tree) in documents.into_iter().enumerate() {
            let mut own = Vec::new();
            let mut name = format!("document {}", i + 1);
            match kind_of(&tree, &mut own) {
                Some(Found::Pod) => {
                    pods += 1;
                    ephemeral::refuse(&tree, &mut errors);
                    stream.pod = pod(tree, limits, &mut errors);
                }
                Some(Found::Object(kind)) => {
                    name = shown_name(kind, &tree);
                    stream.objects.extend(objects::read(kind, &tree, &mut own));
                }
                None => {}
            }
            let below = |error: FieldError| match (alone, error.path.as_str()) {
                (true, _) => error,
                (false, "") => FieldError::new(name.as_str(), error.message),
                (false, path) => FieldError::new(format!("{name}: {path}"), error.message),
            };
            errors.extend(own.into_iter().map(below));
        }
        if pods > 1 {
            return Err(ManifestError::SeveralPods);
        }
        let mut keys = BTreeSet::new();
        for key in stream.objects.iter().map(Object::key) {
            if !keys.insert(key.clone()) {
                errors.push(FieldError::new(key.to_string(), "is given twice"));
            }
        }
        if errors.is_empty() {
            return Ok(stream);
        }
        Err(ManifestError::Fields(errors))
    }
}

/// What a document may be.
enum Found {
    Pod,
    Object(Kind),
}

/// The items of lists, in their place.
fn flatten(documents: Vec<Value>) -> Vec<Value> {
    let mut flat = Vec::new();
    for mut document in documents {
        let list = document["kind"] == "List" && document["apiVersion"] == "v1";
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if list => flat.extend(items),
            Some(other) => {
                document["items"] = other;
                flat.push(document);
            }
            None => flat.push(document),
        }
    }
    flat
}

/// A document of something else is told so before its fields are.
fn kind_of(tree: &Value, errors: &mut Vec<FieldError>) -> Option<Found> {
    let Value::Object(map) = tree else {
        errors.push(FieldError::new(
            "",
            "the manifest is no map; it must be a v1 Pod",
        ));
        return None;
    };
    let version = match map.get("apiVersion") {
        Some(Value::String(text)) if text == "v1" => None,
        Some(other) => Some(format!("{other}: must be \"v1\"")),
        None => Some("missing; must be \"v1\"".to_owned()),
    };
    errors.extend(version.map(|message| FieldError::new("apiVersion", message)));
    let known = match map.get("kind") {
        Some(Value::String(text)) if text == "Pod" => Ok(Found::Pod),
        Some(Value::String(text)) => Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .map(Found::Object)
            .ok_or_else(|| format!("{text:?}: ")),
        Some(other) => Err(format!("{other}: ")),
        None => Err("missing; ".to_owned()),
    };
    match known {
        Ok(found) => errors.is_empty().then_some(found),
        Err(what) => {
            let kinds = Kind::ALL.map(Kind::name).join(", ");
            let message = format!("{what}must be \"Pod\", or beside it one of {kinds}");
            errors.push(FieldError::new("kind", message));
            None
        }
    }
}

fn shown_name(kind: Kind, tree: &Value) -> String {
    let name = tree["metadata"]["name"].as_str().unwrap_or_default();
    let name: String = name.chars().take(64).collect();
    format!("{} {name:?}", kind.name())
}

/// Checks a pod; its faults are added to `errors`.
pub(super) fn pod(
    tree: Value,
    limits: &NodeLimits,
    errors: &mut Vec<FieldError>,
) -> Option<(Manifest, Value)> {
    let before = errors.len();
    if tree.to_string().len() > MAX_POD {
        errors.push(FieldError::new("", "the pod has more than 1 MiB"));
    }
    match typed(&tree, errors) {
        Ok(manifest) => {
            validate::check(&manifest, limits, errors);
            (errors.len() == before).then_some((manifest, tree))
        }
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n";
    const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: v}\n";

    fn parse(text: &str) -> Result<Stream, ManifestError> {
        Stream::parse(
            text,
            &NodeLimits {
                memory_mib: 1024,
                network: true,
            },
        )
    }

    #[test]
    fn a_pod_stands_beside_its_objects() {
        let stream = parse(&format!("{MAP}---\n{POD}")).unwrap();
        assert_eq!(stream.pod.unwrap().0.metadata.name, "p");
        assert_eq!(stream.objects[0].key().to_string(), "ConfigMap default/m");
        assert!(parse(MAP).unwrap().pod.is_none());
        let list = parse(
            r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}]}"#,
        );
        assert_eq!(list.unwrap().objects.len(), 2);
    }

    #[test]
    fn faults_of_several_documents_say_whose_they_are() {
        let text = format!(
            "{MAP}immutable: 5\n---\n{POD}---\nkind: Service\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {{k: '#'}}\n"
        )
        .replace("image: i", "image: ''");
        let Err(ManifestError::Fields(errors)) = parse(&text) else {
            panic!("accepted");
        };
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for start in [
            "ConfigMap \"m\": immutable: invalid type",
            "spec.containers[0].image: required",
            "document 3: apiVersion: missing",
            "document 3: kind: \"Service\"",
            "Secret \"s\": data.k: must be",
        ] {
            assert!(
                lines.iter().any(|l| l.starts_with(start)),
                "{start} in {lines:#?}"
            );
        }
    }

    #[test]
    fn two_pods_and_objects_given_twice_are_refused() {
        let two = parse(&format!("{POD}---\n{POD}"));
        assert_eq!(two, Err(ManifestError::SeveralPods));
        let twice = parse(&format!("{MAP}---\n{MAP}")).unwrap_err();
        assert!(twice.to_string().contains("given twice"), "{twice}");
    }
}
