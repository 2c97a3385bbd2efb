//! ImageService: delegates to one function a call, traces, maps errors.

use crate::error::CriError;
use crate::pages::Pages;
use crate::service::answer;
use crate::{
    Config, image_fs_info, image_list, image_pull, image_remove, image_status, image_stream,
};
use cri_api::v1::image_service_server::ImageService;
use cri_api::v1::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse,
};
use image_store::{ImageError, ImageStore};
use std::path::PathBuf;
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

/// The ImageService of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageServer {
    pub(crate) images: ImageStore,
    pub(crate) config: Arc<Config>,
    /// Where containers' writable layers lie.
    pub(crate) pods_dir: PathBuf,
}

impl ImageServer {
    /// Serves what `images` has. `pods_dir` is where the sandbox crate keeps
    /// scratch disks: `<root>/pods`.
    pub fn new(images: ImageStore, config: Config, pods_dir: PathBuf) -> Self {
        Self {
            images,
            config: Arc::new(config),
            pods_dir,
        }
    }

    /// Calls the store, whose calls block.
    pub(crate) async fn store<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, CriError> {
        let store = self.images.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(CriError::TaskDied(what.to_owned())),
        }
    }

    /// The name in a request's image, which must be there.
    pub(crate) fn name(&self, image: Option<ImageSpec>) -> Result<String, CriError> {
        let image = image.unwrap_or_default();
        if image.image.is_empty() {
            return Err(CriError::invalid("image.image", "required"));
        }
        if !self.config.has_handler(&image.runtime_handler) {
            return Err(CriError::invalid(
                "image.runtime_handler",
                format!(
                    "{:?} is unknown; this runtime has {}",
                    image.runtime_handler,
                    self.config.handlers.join(", ")
                ),
            ));
        }
        Ok(image.image)
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl ImageService for ImageServer {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let request = request.into_inner();
        answer("ListImages", image_list::list_images(self, request)).await
    }

    type StreamImagesStream = Pages<StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let request = request.into_inner();
        answer("StreamImages", image_stream::stream_images(self, request)).await
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Answer<ImageStatusResponse> {
        let request = request.into_inner();
        answer("ImageStatus", image_status::image_status(self, request)).await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let request = request.into_inner();
        answer("PullImage", image_pull::pull_image(self, request)).await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Answer<RemoveImageResponse> {
        let request = request.into_inner();
        answer("RemoveImage", image_remove::remove_image(self, request)).await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        answer("ImageFsInfo", image_fs_info::image_fs_info(self)).await
    }
}
