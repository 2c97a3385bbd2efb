//! PruneImages: the images that nothing uses.

use crate::{convert, status};
use image_store::ImageStore;
use pod_api::v1::{PruneImagesRequest, PruneImagesResponse};
use std::time::Duration;
use tonic::Status;

pub(super) async fn prune(
    store: &ImageStore,
    request: PruneImagesRequest,
) -> Result<PruneImagesResponse, Status> {
    let store = store.clone();
    let min_age = Duration::from_secs(request.unused_for_seconds);
    let work = move || store.collect(u64::MAX, min_age);
    let collected = tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Status::internal(format!("the collection of images died: {e}")))?
        .map_err(|e| status::of_image(&e))?;
    Ok(PruneImagesResponse {
        images: collected.images.iter().map(convert::image).collect(),
        freed_bytes: collected.freed_bytes,
    })
}
