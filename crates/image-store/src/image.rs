//! An image as others see it.

use crate::{Config, Digest, ImageConfig, record::ImageRecord};

/// A complete image: verified, unpacked, ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration; its name in the store.
    pub id: Digest,
    /// Digest of its stack of layers; images may share one.
    pub chain_id: Digest,
    /// Its names with tags (`HOST/REPOSITORY:TAG`), sorted.
    pub tags: Vec<String>,
    /// Its names with manifest digests (`HOST/REPOSITORY@sha256:...`), sorted.
    pub digests: Vec<String>,
    /// Bytes of its file system image.
    pub size: u64,
    /// When it was made, in nanoseconds since 1970; 0 if it does not say.
    pub created_at_ns: i64,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// The node's configuration asks to keep it ([`crate::Config::pinned`]).
    pub pinned: bool,
    /// All its names were removed while it was in use: it goes with its last lease,
    /// unless it gets a name before.
    pub unwanted: bool,
}

impl Image {
    pub(crate) fn new<'n>(
        record: ImageRecord,
        names: impl Iterator<Item = &'n str>,
        config: &Config,
    ) -> Self {
        let (digests, tags): (Vec<_>, Vec<_>) = names
            .map(str::to_owned)
            .partition(|name| name.contains('@'));
        let pinned = config.pinned.iter().any(|pinned| {
            let key = pinned.normalized(config).key();
            tags.contains(&key) || digests.contains(&key)
        });
        Self {
            id: record.id,
            chain_id: record.chain_id,
            tags,
            digests,
            size: record.size,
            created_at_ns: record.created_at_ns,
            config: record.config,
            pinned,
            unwanted: record.delete_when_free,
        }
    }
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that no longer lead to the image.
    pub untagged: Vec<String>,
    /// The image, if it was deleted with its data.
    pub deleted: Option<Digest>,
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Bytes of manifests, configurations and layers.
    pub blob_bytes: u64,
    /// Bytes of file system images, holes not counted.
    pub rootfs_bytes: u64,
    /// Files of both kinds, an inode each.
    pub files: u64,
}
