//! The end of a pull: what was downloaded becomes an image. Blocks.

use super::{PullError, cancel::Cancelled, transfer::Resolved};
use crate::{
    Digest, Image, ImageError, ImageStore, Reference,
    blobs::{BlobWriter, Kind, StagedBlob},
    import::name_keys,
    rootfs::{self, LayerSource},
    store::NewImage,
};

/// Builds the file system, unless it is there, and records the image.
pub(super) fn install(
    store: &ImageStore,
    reference: &Reference,
    resolved: Resolved,
    chain: Digest,
    mut staged: Vec<StagedBlob>,
    cancelled: &Cancelled,
) -> Result<Image, ImageError> {
    let config = &store.inner.config;
    let dirs = &store.inner.dirs;
    let layers = &resolved.manifest.layers;
    let size = store.build_once(&chain, || {
        let sources = layers
            .iter()
            .zip(resolved.config.diff_ids())
            .map(|(layer, diff_id)| {
                let own = staged.iter().find(|blob| blob.digest == layer.digest);
                let file = match own {
                    Some(blob) => blob.open()?,
                    None => dirs.open_file(Kind::Blob, &layer.digest)?.ok_or_else(|| {
                        ImageError::NotFound {
                            name: format!("layer {}", layer.digest),
                        }
                    })?,
                };
                Ok(LayerSource {
                    digest: layer.digest,
                    diff_id: *diff_id,
                    file,
                })
            });
        let sources = sources.collect::<Result<Vec<_>, ImageError>>()?;
        rootfs::build(dirs, &chain, sources, &config.limits)
    })?;
    let mut kept = Vec::new();
    if config.discard_layers {
        staged.clear();
    } else {
        for layer in layers {
            let is_here = staged.iter().any(|blob| blob.digest == layer.digest)
                || dirs.open_file(Kind::Blob, &layer.digest)?.is_some();
            if is_here {
                kept.push(layer.digest);
            }
        }
    }
    let mut documents = Vec::new();
    for bytes in &resolved.documents {
        let mut writer = BlobWriter::new(dirs)?;
        writer.append(bytes)?;
        let blob = writer.finish();
        documents.push(blob.digest);
        staged.push(blob);
    }
    if cancelled.is() {
        return Err(PullError::GivenUp.into());
    }
    store.commit(NewImage {
        id: resolved.manifest.config.digest,
        chain_id: chain,
        size,
        documents,
        layers: kept,
        names: name_keys(
            std::slice::from_ref(reference),
            Some(&resolved.digest),
            config,
        ),
        staged,
        config: resolved.config,
    })
}
