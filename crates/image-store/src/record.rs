//! What the record store holds about images.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use state_store::{StateStore, Table};

use crate::{Digest, ImageConfig, blobs::Kind};

/// An image; the key is its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    pub(crate) chain_id: Digest,
    /// Manifests and the configuration.
    pub(crate) documents: BTreeSet<Digest>,
    /// Layers as transferred, if they are kept.
    pub(crate) layers: Vec<Digest>,
    /// Bytes of the file system.
    pub(crate) size: u64,
    /// Nanoseconds since 1970, 0 if the image does not say.
    pub(crate) created_at_ns: i64,
    pub(crate) config: ImageConfig,
    /// Its last name is gone, but it was in use then: delete it with its last lease.
    pub(crate) delete_when_free: bool,
    /// When it came, or was last leased or released: nanoseconds since 1970.
    #[serde(default)]
    pub(crate) last_used_ns: i64,
}

impl ImageRecord {
    /// The files it needs.
    pub(crate) fn files(&self) -> impl Iterator<Item = (Kind, Digest)> {
        let blobs = self.documents.iter().chain(&self.layers);
        std::iter::once((Kind::Rootfs, self.chain_id))
            .chain(blobs.map(|digest| (Kind::Blob, *digest)))
    }
}

/// A name; the key is the name with its tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(crate) image: Digest,
}

/// The images an owner (a container or pod) uses; the key is the owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub(crate) images: BTreeSet<Digest>,
}

/// The tables of this crate.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) state: StateStore,
    pub(crate) images: Table<ImageRecord>,
    pub(crate) names: Table<NameRecord>,
    pub(crate) leases: Table<LeaseRecord>,
}

impl Tables {
    pub(crate) fn new(state: StateStore) -> Self {
        Self {
            images: state.table("images", 1),
            names: state.table("image-names", 1),
            leases: state.table("image-leases", 1),
            state,
        }
    }
}
