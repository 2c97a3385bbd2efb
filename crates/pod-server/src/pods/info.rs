//! Info: what the daemon is and which engine it chose, and why.

use super::others::Others;
use image_store::ImageStore;
use pod_api::v1::{Engine, EngineInfo, InfoResponse, NetworkInfo};
use pod_engine::PodEngine;
use sandbox::Sandboxes;
use std::collections::BTreeMap;
use tonic::Status;

/// What the daemon found and was told at its start.
pub struct Facts {
    /// State directory.
    pub root: String,
    /// Directory of sockets.
    pub run: String,
    /// The CRI's socket.
    pub cri_socket: String,
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
    /// Pods get the node's network.
    pub network: bool,
    /// Asked for it at each call.
    pub sandboxes: Sandboxes,
}

impl Facts {
    /// Refuses an engine that was found unusable at the daemon's start.
    pub(crate) fn check(&self, asked: i32) -> Result<(), Status> {
        let found = self.engines.iter().find(|info| info.engine == asked);
        match found {
            Some(info) if !info.usable => {
                let name = info.engine().as_str_name();
                let name = name.trim_start_matches("ENGINE_").to_lowercase();
                Err(Status::failed_precondition(format!(
                    "the engine {name} cannot run on this machine: {}",
                    info.detail
                )))
            }
            _ => Ok(()),
        }
    }

    async fn network(&self) -> NetworkInfo {
        let (ready, name, message) = if !self.network {
            let message = "pods have their loopback only (spherule serve --network none)";
            (true, String::new(), message.to_owned())
        } else {
            match self.sandboxes.network_status().await {
                Ok(list) => (true, list.name.clone(), String::new()),
                Err(error) => (false, String::new(), sandbox::chain(&error)),
            }
        };
        NetworkInfo {
            ready,
            name,
            message,
        }
    }

    pub(crate) async fn answer(&self, engine: &PodEngine, others: &Others) -> InfoResponse {
        let network = self.network().await;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        InfoResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            root: self.root.clone(),
            run: self.run.clone(),
            engine: self.engine.into(),
            engine_reason: self.engine_reason.clone(),
            engines: self.engines.clone(),
            kernel: self.kernel.clone(),
            pods: count(engine.list(&BTreeMap::new()).len() + others.count()),
            network: Some(network),
            cri_socket: self.cri_socket.clone(),
            images: count(self.images.list().map_or(0, |images| images.len())),
        }
    }
}
