//! ImageService.

use image_store::ImageStore;

/// The ImageService of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageServer {
    pub(crate) images: ImageStore,
}

impl ImageServer {
    /// Serves what `images` has.
    pub fn new(images: ImageStore) -> Self {
        Self { images }
    }
}
