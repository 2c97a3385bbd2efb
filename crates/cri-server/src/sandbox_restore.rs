//! RestorePod.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{RestorePodRequest, RestorePodResponse};

/// RestorePod: refused, with the reason.
pub(crate) async fn restore_pod(
    _server: &RuntimeServer,
    _request: RestorePodRequest,
) -> Result<RestorePodResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "RestorePod",
        reason: "snapshots of a pod's VM are not there yet",
    })
}
