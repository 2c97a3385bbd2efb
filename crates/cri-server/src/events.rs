//! GetContainerEvents.

use crate::error::CriError;
use crate::pages::Pages;
use crate::service::RuntimeServer;
use cri_api::v1::*;

/// GetContainerEvents.
pub(crate) async fn get_container_events(
    _server: &RuntimeServer,
    _request: GetEventsRequest,
) -> Result<Pages<ContainerEventResponse>, CriError> {
    Err(CriError::Unimplemented {
        call: "GetContainerEvents",
        reason: "it is being written",
    })
}
