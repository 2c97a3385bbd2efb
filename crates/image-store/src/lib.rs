//! The node's images: pulled or imported, verified, unpacked once into a
//! read-only EROFS file system that all pods share.
//!
//! - [`ImageStore::open`] with a root directory and the daemon's record store.
//! - [`ImageStore::import`] takes an OCI layout or `docker save` archive.
//! - [`ImageStore::pull`] (async, needs tokio) gets an image from a registry.
//! - [`ImageStore::get`], [`ImageStore::list`], [`ImageStore::remove`].
//! - [`ImageStore::open_rootfs`] gives the file for a pod's disk, and
//!   [`ImageStore::lease`] keeps it from being deleted until
//!   [`ImageStore::release`].
//! - [`ImageStore::keep_room`] removes unused images while the disk is full.
//!
//! All calls but the pull block on disk I/O (an import for seconds): call them
//! from `spawn_blocking`. The store is `Send`, `Sync` and cheap to clone.
//!
//! # On disk
//!
//! | under `<root>/images/`    | content                                            |
//! |---------------------------|----------------------------------------------------|
//! | `blobs/sha256/<hex>`      | manifests, configurations, layers, as transferred  |
//! | `erofs/<chain hex>.erofs` | a file system per stack of layers                  |
//! | `tmp/`                    | work in progress; emptied at every start           |
//!
//! A file appears under its final name only when it is complete, verified and
//! synced, and before the record that needs it; a record is removed before its
//! files. So a daemon killed at any moment leaves at worst files that no record
//! needs, and the next start removes those.
//!
//! # Trust
//!
//! Archives, manifests and layers are hostile. No member of a layer ever
//! becomes a file of the host: layers are applied to a tree in memory
//! (`erofs-writer`), contents go into the image file. Digests, sizes and
//! uncompressed digests are verified, and [`ImageLimits`] bound all that an
//! image can make this process or its disk take.

mod blobs;
mod config;
mod decompress;
mod digest;
mod error;
mod gc;
mod image;
mod import;
mod layer;
mod manifest;
mod pressure;
mod pull;
mod record;
mod reference;
mod rootfs;
mod store;
mod timestamp;

pub use config::{Config, ImageLimits};
pub use digest::{Digest, DigestError};
pub use error::ImageError;
pub use image::{Image, Removed, Usage};
pub use import::ArchiveError;
pub use layer::{LayerError, PathError, SparseError, TarError};
pub use manifest::{ImageConfig, ManifestError};
pub use pressure::{Collected, Disk, Footprint, Watermarks};
pub use pull::{
    Credentials, CredentialsFileError, HostsError, Progress, PullError, RegistryError, Status,
};
pub use reference::{Reference, ReferenceError};
pub use store::ImageStore;
