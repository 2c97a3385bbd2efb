//! The shapes of objects, as far as they are honoured.

use crate::manifest::{Metadata, Quantity, Resources};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub enum Kind {
    ConfigMap,
    Secret,
    PersistentVolume,
    PersistentVolumeClaim,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ConfigMap,
        Self::Secret,
        Self::PersistentVolume,
        Self::PersistentVolumeClaim,
    ];

    /// As manifests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::PersistentVolume => "PersistentVolume",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
        }
    }

    /// The short name that kubectl knows.
    fn short_name(self) -> &'static str {
        match self {
            Self::ConfigMap => "cm",
            Self::Secret => "secret",
            Self::PersistentVolume => "pv",
            Self::PersistentVolumeClaim => "pvc",
        }
    }

    /// The kind of that name: as in manifests, plural, or kubectl's short one, in
    /// any case.
    pub fn find(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| {
            let full = kind.name().to_ascii_lowercase();
            let singular = name.strip_suffix('s').unwrap_or(&name);
            [&name, singular].contains(&full.as_str()) || name == kind.short_name()
        })
    }

    /// Objects of this kind belong to namespaces.
    pub fn is_namespaced(self) -> bool {
        self != Self::PersistentVolume
    }
}

/// The name of one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty where the kind has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The object of that name; the namespace is left out where the kind has none.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.is_namespaced() { namespace } else { "" };
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Its key in its kind's table.
    pub(super) fn record(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name();
        if self.namespace.is_empty() {
            return write!(f, "{kind} {}", self.name);
        }
        write!(f, "{kind} {}/{}", self.namespace, self.name)
    }
}

/// Bytes that JSON holds as base64.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    /// Their number only: they may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl FromStr for Bytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Line ends within are allowed, as the API server allows them.
        let text: String = text.chars().filter(|c| !"\r\n".contains(*c)).collect();
        let bytes = STANDARD.decode(text).map(Self);
        bytes.map_err(
            |_| "must be base64; plain text goes to stringData (Secret) or data (ConfigMap)",
        )
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub enum Object {
    ConfigMap(ConfigMap),
    Secret(Secret),
    PersistentVolume(PersistentVolume),
    PersistentVolumeClaim(PersistentVolumeClaim),
}

impl Object {
    /// Its name, with the namespace "default" where it names none.
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        let namespace = match metadata.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        ObjectKey::new(self.kind(), namespace, &metadata.name)
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Secret(_) => Kind::Secret,
            Self::PersistentVolume(_) => Kind::PersistentVolume,
            Self::PersistentVolumeClaim(_) => Kind::PersistentVolumeClaim,
        }
    }

    pub(super) fn metadata(&self) -> &Metadata {
        match self {
            Self::ConfigMap(object) => &object.metadata,
            Self::Secret(object) => &object.metadata,
            Self::PersistentVolume(object) => &object.metadata,
            Self::PersistentVolumeClaim(object) => &object.metadata,
        }
    }

    /// It is not to be changed any more.
    pub(super) fn is_immutable(&self) -> bool {
        match self {
            Self::ConfigMap(object) => object.immutable,
            Self::Secret(object) => object.immutable,
            Self::PersistentVolume(_) | Self::PersistentVolumeClaim(_) => false,
        }
    }

    /// The keys of its data and the bytes of each.
    pub(super) fn data_sizes(&self) -> Vec<(String, usize)> {
        match self {
            Self::ConfigMap(map) => {
                let texts = map.data.iter().map(|(k, v)| (k.clone(), v.len()));
                let bytes = map.binary_data.iter().map(|(k, v)| (k.clone(), v.0.len()));
                texts.chain(bytes).collect()
            }
            Self::Secret(secret) => {
                let bytes = secret.data.iter();
                bytes.map(|(k, v)| (k.clone(), v.0.len())).collect()
            }
            Self::PersistentVolume(_) | Self::PersistentVolumeClaim(_) => Vec::new(),
        }
    }
}

/// `v1.ConfigMap`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigMap {
    pub metadata: Metadata,
    pub immutable: bool,
    pub data: BTreeMap<String, String>,
    pub binary_data: BTreeMap<String, Bytes>,
}

impl ConfigMap {
    /// The value of a key, text or not.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        let text = self.data.get(key).map(String::as_bytes);
        text.or_else(|| self.binary_data.get(key).map(|bytes| bytes.0.as_slice()))
    }
}

/// `v1.Secret`; what was given as stringData is in `data`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Secret {
    pub metadata: Metadata,
    pub immutable: bool,
    #[serde(rename = "type")]
    pub kind: String,
    pub data: BTreeMap<String, Bytes>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) string_data: BTreeMap<String, String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither values nor annotations: kubectl keeps what it applied in these.
        f.debug_struct("Secret")
            .field("name", &self.metadata.name)
            .finish_non_exhaustive()
    }
}

/// `v1.PersistentVolume` of the kinds local and hostPath.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PersistentVolume {
    #[serde(default)]
    pub metadata: Metadata,
    pub spec: PersistentVolumeSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PersistentVolumeSpec {
    pub capacity: BTreeMap<String, Quantity>,
    pub access_modes: Vec<String>,
    pub storage_class_name: String,
    pub volume_mode: String,
    pub persistent_volume_reclaim_policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_ref: Option<ClaimRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
}

impl PersistentVolumeSpec {
    /// Containers have the device itself.
    pub(crate) fn is_block(&self) -> bool {
        self.volume_mode == "Block"
    }
}

/// A volume's `claimRef`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimRef {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// `local`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Local {
    pub path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fs_type: String,
}

/// `hostPath`, of a volume or of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostPath {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// `nodeAffinity`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    pub required: NodeSelector,
}

/// Terms of which one must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    pub node_selector_terms: Vec<NodeTerm>,
}

/// Expressions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTerm {
    pub match_expressions: Vec<NodeExpression>,
}

/// One expression.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeExpression {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}

/// `v1.PersistentVolumeClaim`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PersistentVolumeClaim {
    #[serde(default)]
    pub metadata: Metadata,
    pub spec: ClaimSpec,
}

/// Its `spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSpec {
    pub access_modes: Vec<String>,
    pub resources: Resources,
    pub volume_name: String,
    pub storage_class_name: String,
    pub volume_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// `selector` of a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    pub match_labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_kubectls_names() {
        for (name, want) in [
            ("cm", Kind::ConfigMap),
            ("ConfigMap", Kind::ConfigMap),
            ("configmaps", Kind::ConfigMap),
            ("secrets", Kind::Secret),
            ("pv", Kind::PersistentVolume),
            ("pvc", Kind::PersistentVolumeClaim),
        ] {
            assert_eq!(Kind::find(name), Some(want), "{name}");
        }
        assert_eq!(Kind::find("pod"), None);
        assert_eq!(Kind::find(""), None);
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let secret = Secret {
            data: BTreeMap::from([("k".into(), Bytes(b"hidden".to_vec()))]),
            string_data: BTreeMap::from([("s".into(), "hidden".into())]),
            ..Secret::default()
        };
        let shown = format!("{:?}", Object::Secret(secret));
        assert!(
            !shown.contains("hidden") && !shown.contains("104"),
            "{shown}"
        );
    }
}
