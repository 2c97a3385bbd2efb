//! StreamImages.

use crate::error::CriError;
use crate::image_list::selected;
use crate::image_service::ImageServer;
use crate::pages::{Pages, pages};
use cri_api::v1::{StreamImagesRequest, StreamImagesResponse};

/// StreamImages: as ListImages, in pages.
pub(crate) async fn stream_images(
    server: &ImageServer,
    request: StreamImagesRequest,
) -> Result<Pages<StreamImagesResponse>, CriError> {
    let images = selected(server, request.filter).await?;
    Ok(pages(images, |images| StreamImagesResponse { images }))
}
