//! ImageStatus.

use crate::error::CriError;
use crate::image_convert::image;
use crate::image_service::ImageServer;
use cri_api::v1::{ImageStatusRequest, ImageStatusResponse};
use serde_json::{Value, json};
use std::collections::HashMap;

/// ImageStatus. Of an image that is not here: no image, no error.
pub(crate) async fn image_status(
    server: &ImageServer,
    request: ImageStatusRequest,
) -> Result<ImageStatusResponse, CriError> {
    let name = server.name(request.image)?;
    let verbose = request.verbose;
    let wanted = name.clone();
    let found = server
        .store(&name, move |store| {
            let Some(found) = store.get(&wanted)?.filter(|image| !image.unwanted) else {
                return Ok(None);
            };
            let document = if verbose {
                store.config_document(&found)?
            } else {
                Vec::new()
            };
            Ok(Some((found, document)))
        })
        .await?;
    let Some((found, document)) = found else {
        return Ok(ImageStatusResponse::default());
    };
    Ok(ImageStatusResponse {
        info: if verbose {
            info(&found, &document)
        } else {
            HashMap::new()
        },
        image: Some(image(found)),
    })
}

/// The image's own configuration, as it came.
fn info(image: &image_store::Image, document: &[u8]) -> HashMap<String, String> {
    let spec: Value = serde_json::from_slice(document).unwrap_or_default();
    let text = json!({
        "chainID": image.chain_id.to_string(),
        "imageSpec": spec,
        "createdAt": image.created_at_ns,
    });
    HashMap::from([("info".to_owned(), text.to_string())])
}
