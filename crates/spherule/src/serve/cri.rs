//! The Kubernetes CRI's socket, with both of its services.

use super::{Args, engine::Engines, socket};
use cri_api::v1::image_service_server::ImageServiceServer;
use cri_api::v1::runtime_service_server::RuntimeServiceServer;
use cri_server::{Config, Deadlines, ImageServer, RuntimeServer};
use image_store::ImageStore;
use sandbox::Sandboxes;
use serde_json::json;
use state_store::StateStore;
use std::path::Path;
use streaming_server::StreamUrls;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

/// Largest message that a client may send: a pod's configuration is far smaller.
const MAX_REQUEST: usize = 16 << 20;

/// Where a kubelet's emptyDirs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum EmptyDirs {
    /// In the pod's VM.
    Inside,
    /// On the node, shared with the VM.
    Shared,
}

/// The services, ready to be served.
pub(crate) fn services(
    sandboxes: &Sandboxes,
    images: &ImageStore,
    state: &StateStore,
    streams: StreamUrls,
    config: Config,
) -> Router<Stack<Deadlines, Identity>> {
    let pods_dir = sandboxes.config().root.join("pods");
    let image_server = ImageServer::new(images.clone(), config.clone(), pods_dir);
    let runtime = RuntimeServer::new(sandboxes.clone(), images.clone(), state, streams, config);
    socket::server()
        .layer(Deadlines)
        .add_service(RuntimeServiceServer::new(runtime).max_decoding_message_size(MAX_REQUEST))
        .add_service(ImageServiceServer::new(image_server).max_decoding_message_size(MAX_REQUEST))
}

/// What the CRI server is told of the node.
pub(crate) fn config(args: &Args, engines: &Engines, root: &Path, run: &Path) -> Config {
    let mut config = Config::new(env!("CARGO_PKG_VERSION"), host_memory_mib());
    config.network = args.network.wanted();
    config.empty_dirs_inside = args.kubelet_empty_dirs == EmptyDirs::Inside;
    config.vmm_mib = sandbox::vmm_memory_mib(engines.chosen);
    let known: Vec<_> = engines
        .infos
        .iter()
        .map(|info| {
            json!({
                "engine": info.engine().as_str_name().trim_start_matches("ENGINE_").to_lowercase(),
                "usable": info.usable,
                "detail": info.detail,
            })
        })
        .collect();
    config.facts = json!({
        "engine": engines.chosen.to_string(),
        "engineReason": engines.reason,
        "engines": known,
        "root": root,
        "run": run,
        "registries": args.registries,
        "defaultRegistry": args.default_registry,
    });
    config
}

/// Memory of the host in MiB.
fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
    bytes >> 20
}
