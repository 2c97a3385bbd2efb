//! StreamContainers: ListContainers in pages.

use crate::container_list::selected;
use crate::error::CriError;
use crate::pages::{Pages, pages};
use crate::service::RuntimeServer;
use cri_api::v1::{StreamContainersRequest, StreamContainersResponse};

/// StreamContainers.
pub(crate) async fn stream_containers(
    server: &RuntimeServer,
    request: StreamContainersRequest,
) -> Result<Pages<StreamContainersResponse>, CriError> {
    Ok(pages(selected(server, request.filter), |containers| {
        StreamContainersResponse { containers }
    }))
}
