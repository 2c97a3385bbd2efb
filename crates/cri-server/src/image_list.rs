//! ListImages.

use crate::error::CriError;
use crate::image_convert::image;
use crate::image_service::ImageServer;
use cri_api::v1::{Image, ImageFilter, ListImagesRequest, ListImagesResponse};

/// ListImages.
pub(crate) async fn list_images(
    server: &ImageServer,
    request: ListImagesRequest,
) -> Result<ListImagesResponse, CriError> {
    let images = selected(server, request.filter).await?;
    Ok(ListImagesResponse { images })
}

/// The images that the filter selects: all, or the one of a name.
pub(crate) async fn selected(
    server: &ImageServer,
    filter: Option<ImageFilter>,
) -> Result<Vec<Image>, CriError> {
    let spec = filter.and_then(|filter| filter.image).unwrap_or_default();
    let name = spec.image.clone();
    let found = server
        .store(&spec.image, move |store| match name.as_str() {
            "" => store.list(),
            name => Ok(store.get(name)?.into_iter().collect()),
        })
        .await?;
    let wanted = found.into_iter().filter(|image| !image.unwanted);
    Ok(wanted.map(image).collect())
}
