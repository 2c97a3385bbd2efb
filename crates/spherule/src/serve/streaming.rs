//! The server of exec, attach and port-forward.

use super::Args;
use anyhow::Context;
use sandbox::Sandboxes;
use std::path::Path;
use streaming_server::{Config, StreamingServer, tls_config};
use tracing::warn;

/// Where and how it is to listen.
pub(crate) fn config(args: &Args, root: &Path) -> anyhow::Result<Config> {
    let tls = match (&args.streaming_tls_cert, &args.streaming_tls_key) {
        (Some(certificate), Some(key)) => Some(tls_config(certificate, key)?),
        _ => None,
    };
    if tls.is_none() && !args.streaming_address.ip().is_loopback() {
        warn!(
            address = %args.streaming_address,
            "commands are served without TLS to other machines; \
             give --streaming-tls-cert and --streaming-tls-key"
        );
    }
    Ok(Config {
        address: args.streaming_address,
        tls,
        spill: Some(root.to_owned()),
        ..Config::loopback()
    })
}

/// Listens.
pub(crate) async fn listen(
    config: Config,
    sandboxes: &Sandboxes,
) -> anyhow::Result<StreamingServer> {
    let address = config.address;
    let backend = cri_server::streaming_backend(sandboxes.clone());
    StreamingServer::bind(config, backend)
        .await
        .with_context(|| format!("--streaming-address {address}: cannot be listened on"))
}
