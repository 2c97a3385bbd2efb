//! RemoveImage.

use crate::error::CriError;
use crate::image_service::ImageServer;
use cri_api::v1::{RemoveImageRequest, RemoveImageResponse};

/// RemoveImage: all names of the image, by any of them or its id. Containers that
/// have it keep its data until they are removed. Of an unknown image: success.
pub(crate) async fn remove_image(
    server: &ImageServer,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, CriError> {
    let name = server.name(request.image)?;
    let wanted = name.clone();
    let removed = server
        .store(&name, move |store| store.forget(&wanted))
        .await?;
    tracing::info!(image = name, untagged = ?removed.untagged, "image removed");
    Ok(RemoveImageResponse {})
}
