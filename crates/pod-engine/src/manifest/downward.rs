//! References to facts of the pod itself: `fieldRef` and `resourceFieldRef`.

use super::validate::Faults;
use super::{Container, Quantity};
use serde::Deserialize;

/// `fieldRef`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct FieldRef {
    pub api_version: String,
    pub field_path: String,
}

/// `resourceFieldRef`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ResourceFieldRef {
    pub container_name: String,
    pub resource: String,
    pub divisor: Option<Quantity>,
}

/// A field of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    Name,
    Namespace,
    Uid,
    NodeName,
    ServiceAccountName,
    /// The pod's first address.
    PodIp,
    /// All of its addresses.
    PodIps,
    /// All labels, one a line.
    Labels,
    /// All annotations, one a line.
    Annotations,
    Label(String),
    Annotation(String),
}

/// Where a reference stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Env,
    Volume,
}

impl Field {
    /// The field of this path.
    pub(crate) fn parse(path: &str, place: Place) -> Result<Self, String> {
        let field = match path {
            "metadata.name" => Self::Name,
            "metadata.namespace" => Self::Namespace,
            "metadata.uid" => Self::Uid,
            "metadata.labels" if place == Place::Volume => Self::Labels,
            "metadata.annotations" if place == Place::Volume => Self::Annotations,
            "spec.nodeName" if place == Place::Env => Self::NodeName,
            "spec.serviceAccountName" if place == Place::Env => Self::ServiceAccountName,
            "status.podIP" if place == Place::Env => Self::PodIp,
            "status.podIPs" if place == Place::Env => Self::PodIps,
            _ => match subscript(path) {
                Some(("metadata.labels", key)) => Self::Label(key.to_owned()),
                Some(("metadata.annotations", key)) => Self::Annotation(key.to_owned()),
                _ => return Err(unknown(path, place)),
            },
        };
        Ok(field)
    }
}

fn unknown(path: &str, place: Place) -> String {
    if ["status.hostIP", "status.hostIPs"].contains(&path) {
        return format!("{path}: not supported yet");
    }
    let more = match place {
        Place::Env => "spec.nodeName, spec.serviceAccountName, status.podIP, status.podIPs",
        Place::Volume => "metadata.labels, metadata.annotations",
    };
    format!(
        "{path:?}: must be metadata.name, metadata.namespace, metadata.uid, \
         metadata.labels['KEY'], metadata.annotations['KEY'], {more}"
    )
}

/// `field['key']` in its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.split_once("['")?;
    let key = rest.strip_suffix("']")?;
    (!key.is_empty() && !key.contains('\'')).then_some((field, key))
}

pub(super) fn check_field(field: &FieldRef, path: &str, place: Place, faults: &mut Faults<'_>) {
    faults.require(
        ["", "v1"].contains(&field.api_version.as_str()),
        &format!("{path}.apiVersion"),
        "must be v1",
    );
    if let Err(message) = Field::parse(&field.field_path, place) {
        faults.add(format!("{path}.fieldPath"), message);
    }
}

/// Amounts of a container that can be referred to, and the divisors of each.
const RESOURCES: [(&str, &[&str]); 6] = [
    ("limits.cpu", &["1", "1m"]),
    ("requests.cpu", &["1", "1m"]),
    ("limits.memory", BYTE_DIVISORS),
    ("requests.memory", BYTE_DIVISORS),
    ("limits.ephemeral-storage", BYTE_DIVISORS),
    ("requests.ephemeral-storage", BYTE_DIVISORS),
];
const BYTE_DIVISORS: &[&str] = &[
    "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
];

/// `containers`: those that can be named; empty: the reference means its own.
pub(super) fn check_resource(
    reference: &ResourceFieldRef,
    path: &str,
    containers: &[&Container],
    faults: &mut Faults<'_>,
) {
    let name = reference.container_name.as_str();
    let known = containers.iter().any(|c| c.name == name);
    faults.require(
        known || (containers.is_empty() && name.is_empty()),
        &format!("{path}.containerName"),
        "must be the name of a container of this pod",
    );
    let resource = reference.resource.as_str();
    let Some((_, divisors)) = RESOURCES.iter().find(|(name, _)| *name == resource) else {
        faults.add(
            format!("{path}.resource"),
            "must be limits or requests of cpu, memory or ephemeral-storage, as limits.cpu",
        );
        return;
    };
    let zero = Quantity::default();
    let right = reference
        .divisor
        .is_none_or(|given| given == zero || divisors.iter().any(|text| text.parse() == Ok(given)));
    faults.require(
        right,
        &format!("{path}.divisor"),
        &format!("must be one of {}", divisors.join(", ")),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_known_by_their_paths() {
        let env = |path| Field::parse(path, Place::Env);
        assert_eq!(env("metadata.name"), Ok(Field::Name));
        assert_eq!(
            env("metadata.labels['app.kubernetes.io/name']"),
            Ok(Field::Label("app.kubernetes.io/name".into()))
        );
        for path in [
            "",
            "metadata",
            "metadata.labels",
            "metadata.labels['']",
            "metadata.labels['a'",
            "status.hostIP",
            "spec.containers",
        ] {
            assert!(env(path).is_err(), "{path}");
        }
        assert_eq!(
            Field::parse("metadata.labels", Place::Volume),
            Ok(Field::Labels)
        );
        assert!(Field::parse("spec.nodeName", Place::Volume).is_err());
    }
}
