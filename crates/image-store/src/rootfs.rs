//! Builds an image's file system from its layers.

use std::fs::File;

use erofs_writer::{Builder, Limits, Options};

use crate::{
    Digest, ImageError,
    blobs::{Directories, Kind},
    config::ImageLimits,
    decompress::LayerStream,
    layer,
};

/// Goes into each file system's uuid; changes with the way they are built.
const BUILD_VERSION: &str = "spherule rootfs 1";

/// One layer to apply: the file with its (compressed) archive.
pub(crate) struct LayerSource {
    /// The layer as it was transferred, for messages.
    pub(crate) digest: Digest,
    /// What its uncompressed content must hash to.
    pub(crate) diff_id: Digest,
    pub(crate) file: File,
}

/// Builds the file system of `layers`, the lowest first, under the name
/// `chain`; returns its size in bytes. Nothing is left behind on an error.
pub(crate) fn build(
    dirs: &Directories,
    chain: &Digest,
    layers: Vec<LayerSource>,
    limits: &ImageLimits,
) -> Result<u64, ImageError> {
    let target = dirs.temporary()?;
    let file = target
        .reopen()
        .map_err(ImageError::io("open", target.path()))?;
    let mut uuid = [0; 16];
    let key = Digest::of(format!("{BUILD_VERSION} {chain}").as_bytes());
    uuid.copy_from_slice(&key.bytes()[..16]);
    // The bits by which tools know a uuid made of a hash (version 8, RFC 9562).
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let options = Options {
        uuid,
        limits: Limits {
            max_data_bytes: limits.max_unpacked_bytes,
            // One more: the root directory is no member.
            max_inodes: limits.max_members.saturating_add(1),
            max_metadata_bytes: limits.max_metadata_bytes,
        },
    };
    let mut builder = Builder::new(file, &options);
    let mut members_left = limits.max_members;
    let mut bytes_left = limits.max_stream_bytes();
    for LayerSource {
        digest,
        diff_id,
        file,
    } in layers
    {
        let stream = LayerStream::start(file, bytes_left);
        let stream = layer::apply(&mut builder, stream, &mut members_left, limits.max_members)
            .map_err(|source| ImageError::Layer { digest, source })?;
        let (found, len) = stream.finish()?;
        if found != diff_id {
            return Err(ImageError::DiffId {
                digest,
                found,
                expected: diff_id,
            });
        }
        bytes_left -= len;
    }
    let summary = builder.finish()?;
    tracing::debug!(%chain, inodes = summary.inodes, bytes = summary.size_bytes, "built a file system");
    dirs.keep(target.into_temp_path(), Kind::Rootfs, chain)?;
    Ok(summary.size_bytes)
}
