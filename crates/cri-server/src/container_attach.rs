//! Attach: the URL where a container's streams are served.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{AttachRequest, AttachResponse};

/// Attach: refused, with the reason.
pub(crate) async fn attach(
    _server: &RuntimeServer,
    _request: AttachRequest,
) -> Result<AttachResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "Attach",
        reason: "streaming is not there yet; read the container's log",
    })
}
