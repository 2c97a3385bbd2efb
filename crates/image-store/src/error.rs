//! What can go wrong with images.

use std::{io, path::PathBuf, sync::Arc};

use erofs_writer::WriteError;
use state_store::StateError;

use crate::{
    Digest, import::ArchiveError, layer::LayerError, manifest::ManifestError, pull::PullError,
    reference::ReferenceError,
};

/// A failed operation on the image store.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the store could not be read or written.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The record store failed.
    #[error("cannot keep the record of an image")]
    State(#[from] StateError),
    /// A name that is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No such image.
    #[error("no image {name:?}; pull or import it first")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// A short id that fits several images.
    #[error("{count} images have an id that begins with {prefix:?}; give more digits")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many fit.
        count: usize,
    },
    /// An image that cannot be deleted now.
    #[error("image {id} is in use by {}; remove that first", owners.join(", "))]
    InUse {
        /// The image.
        id: Digest,
        /// Who uses it.
        owners: Vec<String>,
    },
    /// An archive that is no image.
    #[error("cannot import the archive")]
    Archive(#[from] ArchiveError),
    /// A manifest, index or configuration that is not acceptable.
    #[error("cannot use the image")]
    Manifest(#[from] ManifestError),
    /// A layer that is not acceptable.
    #[error("layer {digest} is refused")]
    Layer {
        /// The layer, as it is transferred.
        digest: Digest,
        /// The reason.
        #[source]
        source: LayerError,
    },
    /// A layer whose uncompressed content is not what the configuration says.
    #[error(
        "layer {digest} is refused: its content has the digest {found}, the image's configuration says {expected}"
    )]
    DiffId {
        /// The layer, as it is transferred.
        digest: Digest,
        /// The digest of its content.
        found: Digest,
        /// What it should be.
        expected: Digest,
    },
    /// Content that is not what its descriptor says.
    #[error(
        "content of {found_size} bytes with the digest {found} came for {expected} of {expected_size} bytes"
    )]
    Content {
        /// The digest it should have.
        expected: Digest,
        /// The size it should have, in bytes.
        expected_size: u64,
        /// The digest it has.
        found: Digest,
        /// The size it has, in bytes.
        found_size: u64,
    },
    /// Content over a limit of the configuration.
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// What it is.
        what: String,
        /// How large it is.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The image file could not be written.
    #[error("cannot write the file system of the image")]
    Write(#[from] WriteError),
    /// The image could not be pulled.
    #[error("cannot pull the image")]
    Pull(#[source] Box<PullError>),
    /// The failure of a pull that several callers waited for.
    #[error(transparent)]
    Shared(Arc<ImageError>),
    /// A thread of the store ended early.
    #[error("a thread of the image store failed; see the log")]
    Thread,
}

impl From<PullError> for ImageError {
    fn from(error: PullError) -> Self {
        Self::Pull(Box::new(error))
    }
}

impl ImageError {
    pub(crate) fn io(
        operation: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    /// Whether the cause is a full disk or quota on this node.
    pub fn is_no_space(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match self {
            Self::Io { source, .. } => full(source),
            Self::Write(source) => source.is_no_space(),
            Self::Shared(error) => error.is_no_space(),
            Self::Layer { source, .. } => source.write_error().is_some_and(WriteError::is_no_space),
            _ => false,
        }
    }
}
