//! Info: what the daemon is and which engine it chose, and why.

use image_store::ImageStore;
use pod_api::v1::{Engine, EngineInfo, InfoResponse};
use pod_engine::PodEngine;
use std::collections::BTreeMap;

/// What the daemon found and was told at its start.
pub struct Facts {
    /// State directory.
    pub root: String,
    /// Directory of sockets.
    pub run: String,
    /// The guest kernel's path.
    pub kernel: String,
    /// The engine pods get.
    pub engine: Engine,
    /// Why.
    pub engine_reason: String,
    /// All engines.
    pub engines: Vec<EngineInfo>,
    /// Counted at each call.
    pub images: ImageStore,
}

impl Facts {
    pub(crate) fn answer(&self, engine: &PodEngine) -> InfoResponse {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        InfoResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            root: self.root.clone(),
            run: self.run.clone(),
            engine: self.engine.into(),
            engine_reason: self.engine_reason.clone(),
            engines: self.engines.clone(),
            kernel: self.kernel.clone(),
            pods: count(engine.list(&BTreeMap::new()).len()),
            images: count(self.images.list().map_or(0, |images| images.len())),
        }
    }
}
