//! ImportImage: the archive is spooled into a file without a name, then imported.

use crate::status;
use image_store::{Image, ImageStore};
use pod_api::v1::ImportImageRequest;
use std::io::{BufReader, Seek};
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tonic::{Status, Streaming};

/// A caller that goes away leaves nothing: the file never had a name.
pub(crate) async fn import(
    store: &ImageStore,
    spool: &Path,
    mut pieces: Streaming<ImportImageRequest>,
) -> Result<Vec<Image>, Status> {
    let failed = |e: std::io::Error| {
        Status::resource_exhausted(format!(
            "cannot spool the archive in {}: {e}",
            spool.display()
        ))
    };
    let file = tempfile::tempfile_in(spool).map_err(failed)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut reference = String::new();
    while let Some(piece) = pieces.message().await? {
        if !piece.reference.is_empty() {
            reference = piece.reference;
        }
        file.write_all(&piece.data).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    let mut file = file.into_std().await;
    file.rewind().map_err(failed)?;
    let store = store.clone();
    let imported = tokio::task::spawn_blocking(move || {
        let reference = (!reference.is_empty()).then_some(reference.as_str());
        store.import(BufReader::with_capacity(1 << 20, file), reference)
    });
    let imported = imported
        .await
        .map_err(|e| Status::internal(e.to_string()))?;
    imported.map_err(|e| status::of_image(&e))
}
