//! ImageService: delegates, nothing else.

mod import;
mod prune;
mod pull;

use crate::{convert, status};
use image_store::ImageStore;
use pod_api::v1::image_service_server::ImageService;
use pod_api::v1::{
    ImportImageRequest, ImportImageResponse, ListImagesRequest, ListImagesResponse,
    PruneImagesRequest, PruneImagesResponse, PullImageRequest, PullImageResponse,
    RemoveImageRequest, RemoveImageResponse,
};
use std::path::PathBuf;
use std::pin::Pin;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Clone)]
pub struct Images {
    store: ImageStore,
    /// Where archives are kept while they arrive.
    spool: PathBuf,
}

impl Images {
    /// Serves this store; archives are spooled, without a name, in `spool`.
    pub fn new(store: ImageStore, spool: PathBuf) -> Self {
        Self { store, spool }
    }
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn import_image(
        &self,
        request: Request<Streaming<ImportImageRequest>>,
    ) -> Result<Response<ImportImageResponse>, Status> {
        let images = import::import(&self.store, &self.spool, request.into_inner()).await?;
        let images = images.iter().map(convert::image).collect();
        Ok(Response::new(ImportImageResponse { images }))
    }

    type PullImageStream = Pin<Box<dyn Stream<Item = Result<PullImageResponse, Status>> + Send>>;

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        Ok(Response::new(pull::pull(
            self.store.clone(),
            request.into_inner(),
        )))
    }

    async fn list_images(
        &self,
        _: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.store.list().map_err(|e| status::of_image(&e))?;
        let images = images.iter().map(convert::image).collect();
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let image = request.into_inner().image;
        let removed = self
            .store
            .remove(&image)
            .map_err(|e| status::of_image(&e))?;
        let deleted = removed.deleted.is_some();
        Ok(Response::new(RemoveImageResponse {
            untagged: removed.untagged,
            deleted,
        }))
    }

    async fn prune_images(
        &self,
        request: Request<PruneImagesRequest>,
    ) -> Result<Response<PruneImagesResponse>, Status> {
        let answer = prune::prune(&self.store, request.into_inner()).await?;
        Ok(Response::new(answer))
    }
}
