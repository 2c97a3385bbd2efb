//! What the daemon's configuration says about images.

use std::path::PathBuf;

use crate::Reference;

/// How images are named, pulled and bounded.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The registry of names without a host; unset, such a name can only be
    /// imported, not pulled.
    pub default_registry: Option<String>,
    /// What goes before a one-part name in the default registry.
    pub default_namespace: Option<String>,
    /// A directory in the style of containerd's `certs.d`: `HOST[:PORT]/hosts.toml`
    /// says how to reach a registry. Only there can plain HTTP be allowed.
    pub registries_dir: Option<PathBuf>,
    /// A file in the format of docker's `config.json`, read at each pull: the
    /// credentials of pulls that bring none.
    pub credentials_file: Option<PathBuf>,
    /// Images that whoever tidies the node should keep ([`crate::Image::pinned`]).
    pub pinned: Vec<Reference>,
    /// Bounds against images that would fill the node.
    pub limits: ImageLimits,
    /// Drop the compressed layers once the image is built. They only serve to
    /// pull another image with the same layers faster.
    pub discard_layers: bool,
}

/// Bounds on one image; what exceeds one is refused.
#[derive(Debug, Clone, Copy)]
pub struct ImageLimits {
    /// Bytes of all files in all layers, holes and replaced files included.
    pub max_unpacked_bytes: u64,
    /// Members of all layers together.
    pub max_members: u64,
    /// Bytes of memory for names and attributes while an image is built.
    pub max_metadata_bytes: u64,
    /// Bytes of all layers as they are transferred.
    pub max_compressed_bytes: u64,
    /// Bytes of a manifest, an index or a configuration.
    pub max_document_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            max_unpacked_bytes: 64 << 30,
            max_members: 4_000_000,
            max_metadata_bytes: 2 << 30,
            max_compressed_bytes: 64 << 30,
            max_document_bytes: 4 << 20,
        }
    }
}

impl ImageLimits {
    /// Bytes that the decompressed archives of an image may have: contents,
    /// and generous headers.
    pub(crate) fn max_stream_bytes(&self) -> u64 {
        self.max_unpacked_bytes
            .saturating_add(self.max_members.saturating_mul(2048))
    }
}
