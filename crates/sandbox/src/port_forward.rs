//! Connections to ports of a pod ([`crate::Sandboxes::port_forward`]): each is a
//! vsock connection of its own, so one that stalls holds up no other.

use crate::Inner;
use crate::error::SandboxError;
use crate::guest;
use crate::registry::Entry;
use tokio::net::UnixStream;

/// Connects to a port within the pod's network.
pub(crate) async fn open(
    inner: &Inner,
    entry: &Entry,
    port: u16,
) -> Result<UnixStream, SandboxError> {
    if port == 0 {
        return Err(SandboxError::Invalid {
            field: "port",
            message: "must be 1 to 65535".to_owned(),
        });
    }
    let live = entry.require_live()?;
    let limit = inner.config.timeouts.call;
    let vsock = live.paths.vsock();
    let open = guest::open_forward(&vsock, port);
    live.within("connect to a port of the pod", limit, open)
        .await
}
