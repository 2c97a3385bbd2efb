//! The connection to the daemon.

use anyhow::{Context, anyhow};
use hyper_util::rt::TokioIo;
use pod_api::v1::image_service_client::ImageServiceClient;
use pod_api::v1::pod_service_client::PodServiceClient;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Largest message in bytes: pod lists hold whole manifests.
const MAX_MESSAGE: usize = 64 << 20;

/// Clients of the daemon's services.
pub(crate) struct Daemon {
    pub(crate) pods: PodServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    run: PathBuf,
}

impl Daemon {
    /// Connects to the daemon whose sockets lie in `run`.
    pub(crate) async fn connect(run: &Path) -> anyhow::Result<Self> {
        let socket = run.join(pod_api::SOCKET);
        // Tried by itself first: its error says more than the channel's.
        UnixStream::connect(&socket).await.map_err(|error| {
            anyhow!(
                "no daemon answers on {} ({error}); start one with `spherule serve`, \
                 or name its run directory with --run",
                socket.display()
            )
        })?;
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is never looked up: the connector goes to the socket.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .context("the daemon's socket is open but does not speak gRPC")?;
        Ok(Self {
            pods: PodServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            run: run.to_owned(),
        })
    }

    /// A connection of its own, for a call that may stall: what waits for it counts
    /// against all calls of its connection.
    pub(crate) async fn another(&self) -> anyhow::Result<Self> {
        Self::connect(&self.run).await
    }
}

/// The daemon's refusal as an error with its own words only. A status that has a
/// cause is not the daemon's: the connection made it.
pub(crate) fn refused(status: tonic::Status) -> anyhow::Error {
    if std::error::Error::source(&status).is_some() {
        return anyhow!("the daemon went away: {}", status.message());
    }
    anyhow!("{}", status.message())
}
