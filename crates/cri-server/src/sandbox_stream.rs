//! StreamPodSandboxes: ListPodSandbox in pages.

use crate::error::CriError;
use crate::pages::{Pages, pages};
use crate::sandbox_list::selected;
use crate::service::RuntimeServer;
use cri_api::v1::{StreamPodSandboxesRequest, StreamPodSandboxesResponse};

/// StreamPodSandboxes.
pub(crate) async fn stream_pod_sandboxes(
    server: &RuntimeServer,
    request: StreamPodSandboxesRequest,
) -> Result<Pages<StreamPodSandboxesResponse>, CriError> {
    Ok(pages(selected(server, request.filter), |pod_sandboxes| {
        StreamPodSandboxesResponse { pod_sandboxes }
    }))
}
