//! The image store as this crate uses it: its blocking calls on threads of
//! their own.

use crate::error::{SandboxError, chain};
use image_store::{Image, ImageError, ImageStore};
use std::fs::File;

/// The local images.
#[derive(Debug)]
pub(crate) struct Images(ImageStore);

/// An image that is there.
#[derive(Debug, Clone)]
pub(crate) struct FoundImage {
    image: Image,
    id: String,
}

impl FoundImage {
    /// Digest of its configuration.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Paths that its configuration wants as volumes, as they stand there.
    pub(crate) fn volumes(&self) -> &[String] {
        &self.image.config.volumes
    }

    /// Name of its extent in a VM: images of the same layers share one.
    pub(crate) fn extent(&self) -> String {
        self.image.chain_id.to_string()
    }
}

impl Images {
    pub(crate) fn new(store: ImageStore) -> Self {
        Self(store)
    }

    /// The image of that name.
    pub(crate) async fn find(&self, name: &str) -> Result<FoundImage, SandboxError> {
        let wanted = name.to_owned();
        let image = self.blocking(name, move |store| store.get(&wanted)).await?;
        let image = image.ok_or_else(|| SandboxError::Image {
            image: name.to_owned(),
            message: "it is not here; pull or import it first".to_owned(),
        })?;
        let id = image.id.to_string();
        Ok(FoundImage { image, id })
    }

    /// Keeps the image from removal while `holder` has it.
    pub(crate) async fn lease(&self, found: &FoundImage, holder: &str) -> Result<(), SandboxError> {
        let (id, holder) = (found.image.id, holder.to_owned());
        self.blocking(found.id(), move |store| store.lease(&id, &holder))
            .await
    }

    /// Ends the leases of `holder`; of none: success.
    pub(crate) async fn release(&self, holder: &str) -> Result<(), SandboxError> {
        let owner = holder.to_owned();
        self.blocking(holder, move |store| store.release(&owner))
            .await
    }

    /// Its file system, to read.
    pub(crate) async fn open(&self, found: &FoundImage) -> Result<File, SandboxError> {
        let image = found.image.clone();
        self.blocking(found.id(), move |store| store.open_rootfs(&image))
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        image: &str,
        work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        let store = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result.map_err(|error| SandboxError::Image {
                image: image.to_owned(),
                message: chain(&error),
            }),
            Err(_) => Err(SandboxError::TaskDied(image.to_owned())),
        }
    }
}
