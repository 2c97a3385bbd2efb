//! The documents of an image: index, manifest, configuration (OCI image-spec
//! 1.1, and docker's schema 2, which has the same fields).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::Digest;

/// Layers that an image may have; overlayfs itself stops earlier.
const MAX_LAYERS: usize = 512;
const MAX_MANIFESTS: usize = 1024;

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON it should be.
    #[error("{document} {digest} is not valid")]
    Json {
        /// "manifest", "index" or "configuration".
        document: &'static str,
        /// The document's digest.
        digest: Digest,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// Of a kind that this daemon does not run.
    #[error("{digest} has the media type {media_type:?}, which is not an image's")]
    MediaType {
        /// The document or layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A document that can be read as two kinds.
    #[error("manifest {digest} is ambiguous: it has both layers and manifests, or neither")]
    Ambiguous {
        /// Its digest.
        digest: Digest,
    },
    /// The old format.
    #[error(
        "manifest {digest} is of schema version {version}, only 2 is supported; push the image again"
    )]
    Schema {
        /// Its digest.
        digest: Digest,
        /// What it says it is.
        version: u64,
    },
    /// Indexes within indexes, too many times.
    #[error("index {digest} is nested deeper than {limit} indexes")]
    Nested {
        /// Its digest.
        digest: Digest,
        /// The limit.
        limit: usize,
    },
    /// No manifest of an index fits.
    #[error("the image is for {found}, this machine runs {machine}")]
    Platform {
        /// The platforms it is for.
        found: String,
        /// This machine's.
        machine: String,
    },
    /// Manifest and configuration do not belong together.
    #[error("manifest {digest} has {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// The manifest's (or configuration's) digest.
        digest: Digest,
        /// Layers of the manifest.
        layers: usize,
        /// Layers of the configuration.
        diff_ids: usize,
    },
    /// No layers, or far too many.
    #[error("image {digest} has {count} layers; it must have 1 to {MAX_LAYERS}")]
    Layers {
        /// The manifest's (or configuration's) digest.
        digest: Digest,
        /// How many it has.
        count: usize,
    },
    /// More entries than an index needs.
    #[error("index {digest} lists {count} manifests, more than {MAX_MANIFESTS}")]
    Manifests {
        /// Its digest.
        digest: Digest,
        /// How many it has.
        count: usize,
    },
}

/// Refers to a document or layer.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// What a machine must be to run an image.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
}

impl Platform {
    /// The machine this runs on, in Go's words.
    pub(crate) fn machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let machine = Self::machine();
        if *self == machine {
            return Ok(());
        }
        Err(ManifestError::Platform {
            found: self.to_string(),
            machine: machine.to_string(),
        })
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = |text: &str| {
            if text.is_empty() {
                "unknown".to_owned()
            } else {
                text.to_owned()
            }
        };
        write!(f, "{}/{}", known(&self.os), known(&self.architecture))
    }
}

/// What a descriptor points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DocumentKind {
    Index,
    Manifest,
}

/// An image's parts.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Either kind of document that a name can lead to.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses a manifest or index. `media_type` is what led here, if anything;
    /// the document must agree with it.
    pub(crate) fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, ManifestError> {
        let digest = Digest::of(bytes);
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
                document: "manifest",
                digest,
                source,
            })?;
        let version = raw.schema_version.unwrap_or(2);
        if version != 2 || raw.fs_layers.is_some() {
            return Err(ManifestError::Schema { digest, version });
        }
        let kinds = [
            media_type.unwrap_or(""),
            raw.media_type.as_deref().unwrap_or(""),
        ]
        .into_iter()
        .filter(|media_type| !media_type.is_empty())
        .map(|media_type| document_kind(media_type, digest))
        .collect::<Result<Vec<_>, _>>()?;
        let (kind, document) = match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => (
                DocumentKind::Manifest,
                Self::Manifest(Manifest { config, layers }),
            ),
            (None, None, Some(manifests)) => (DocumentKind::Index, Self::Index(manifests)),
            _ => return Err(ManifestError::Ambiguous { digest }),
        };
        if kinds.iter().any(|declared| *declared != kind) {
            return Err(ManifestError::Ambiguous { digest });
        }
        match &document {
            Self::Manifest(manifest) => check_layers(digest, &manifest.layers)?,
            Self::Index(manifests) if manifests.len() > MAX_MANIFESTS => {
                return Err(ManifestError::Manifests {
                    digest,
                    count: manifests.len(),
                });
            }
            Self::Index(_) => {}
        }
        Ok(document)
    }
}

fn check_layers(digest: Digest, layers: &[Descriptor]) -> Result<(), ManifestError> {
    check_layer_count(digest, layers.len())?;
    layers.iter().try_for_each(|layer| {
        let known = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ];
        if known.contains(&layer.media_type.as_str()) {
            return Ok(());
        }
        let media_type = layer.media_type.clone();
        Err(ManifestError::MediaType {
            digest: layer.digest,
            media_type,
        })
    })
}

pub(crate) fn check_layer_count(digest: Digest, count: usize) -> Result<(), ManifestError> {
    if count == 0 || count > MAX_LAYERS {
        return Err(ManifestError::Layers { digest, count });
    }
    Ok(())
}

/// Which kind of document a media type stands for.
pub(crate) fn document_kind(
    media_type: &str,
    digest: Digest,
) -> Result<DocumentKind, ManifestError> {
    match media_type {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Ok(DocumentKind::Index),
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Ok(DocumentKind::Manifest),
        "application/vnd.docker.distribution.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v1+prettyjws" => {
            Err(ManifestError::Schema { digest, version: 1 })
        }
        _ => Err(ManifestError::MediaType {
            digest,
            media_type: media_type.to_owned(),
        }),
    }
}

/// The entries of an index that this machine may run, the best first: those
/// that say so, then those that name no platform.
pub(crate) fn for_this_machine(
    manifests: &[Descriptor],
) -> Result<Vec<&Descriptor>, ManifestError> {
    let machine = Platform::machine();
    let candidates: Vec<_> = manifests.iter().filter(|d| !is_attestation(d)).collect();
    let mut fitting: Vec<_> = candidates
        .iter()
        .copied()
        .filter(|d| d.platform.as_ref() == Some(&machine))
        .collect();
    fitting.extend(candidates.iter().copied().filter(|d| d.platform.is_none()));
    if fitting.is_empty() {
        let mut found: Vec<_> = candidates
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(Platform::to_string)
            .collect();
        found.sort();
        found.dedup();
        let found = if found.is_empty() {
            "no platform".to_owned()
        } else {
            found.join(", ")
        };
        return Err(ManifestError::Platform {
            found,
            machine: machine.to_string(),
        });
    }
    Ok(fitting)
}

/// Whether it is a build's provenance, which stands in an index like an image.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor
        .annotations
        .get("vnd.docker.reference.type")
        .is_some_and(|t| t == "attestation-manifest")
}

/// How an image wants to be run; from its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `USER[:GROUP]`, names or numbers; empty for root.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// `NAME=VALUE` each.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// The command's first words.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// The words after the entrypoint, or the command where there is none.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// Empty for `/`.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `PORT/PROTOCOL` each.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub exposed_ports: Vec<String>,
    /// Paths that the image wants to be volumes.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub volumes: Vec<String>,
    /// Labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the process to end; none for SIGTERM.
    #[serde(deserialize_with = "null_is_default")]
    pub stop_signal: Option<String>,
}

/// The configuration document.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) created: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) config: ImageConfig,
    rootfs: RootFs,
}

#[derive(Debug, Clone, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

impl ConfigFile {
    /// Parses a configuration and checks that this machine can run the image.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let digest = Digest::of(bytes);
        let config: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
            document: "configuration",
            digest,
            source,
        })?;
        let platform = Platform {
            os: config.os.clone(),
            architecture: config.architecture.clone(),
        };
        platform.check()?;
        check_layer_count(digest, config.rootfs.diff_ids.len())?;
        Ok(config)
    }

    /// Digests of the uncompressed layers, the lowest first.
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A set, which Go programs write as a map to empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: BTreeMap<String, serde::de::IgnoredAny> = null_is_default(deserializer)?;
    Ok(map.into_keys().collect())
}

fn as_keys<S: serde::Serializer>(keys: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(keys.iter().map(|key| (key, serde_json::Map::new())))
}

#[cfg(test)]
mod tests;
