//! Exec: the URL where a command's streams are served.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{ExecRequest, ExecResponse};

/// Exec: refused, with the reason.
pub(crate) async fn exec(
    _server: &RuntimeServer,
    _request: ExecRequest,
) -> Result<ExecResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "Exec",
        reason: "streaming is not there yet; use ExecSync",
    })
}
