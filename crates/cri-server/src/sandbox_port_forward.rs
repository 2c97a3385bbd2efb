//! PortForward: the URL where connections to a pod are served.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{PortForwardRequest, PortForwardResponse};
use sandbox::SandboxState;

/// PortForward: checks the request; connections are made for whoever comes with
/// the URL. The ports matter to clients of the older WebSocket protocol only.
pub(crate) async fn port_forward(
    server: &RuntimeServer,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, CriError> {
    let found = server.find_sandbox(&request.pod_sandbox_id)?;
    let port = |port: i32| u16::try_from(port).ok().filter(|&port| port > 0);
    let ports: Option<Vec<u16>> = request.port.into_iter().map(port).collect();
    let ports = ports.ok_or_else(|| CriError::invalid("port", "must be 1 to 65535"))?;
    if found.sandbox.state != SandboxState::Ready {
        return Err(CriError::Precondition(format!(
            "the sandbox {} is {:?}; it must be Ready",
            found.id(),
            found.sandbox.state
        )));
    }
    let sandbox = found.id().to_owned();
    let request = streaming_server::PortForwardRequest { sandbox, ports };
    let url = server.streams.port_forward(request)?;
    Ok(PortForwardResponse { url })
}
