//! Status: conditions, handlers and features.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::*;

/// Status.
pub(crate) async fn status(
    _server: &RuntimeServer,
    _request: StatusRequest,
) -> Result<StatusResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "Status",
        reason: "it is being written",
    })
}
