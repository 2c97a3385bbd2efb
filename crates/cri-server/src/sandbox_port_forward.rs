//! PortForward: the URL where connections to a pod are served.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{PortForwardRequest, PortForwardResponse};

/// PortForward: refused, with the reason.
pub(crate) async fn port_forward(
    _server: &RuntimeServer,
    _request: PortForwardRequest,
) -> Result<PortForwardResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "PortForward",
        reason: "pods have no network yet",
    })
}
