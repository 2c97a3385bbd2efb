//! ListPodSandbox.

use crate::convert::list_sandbox;
use crate::error::CriError;
use crate::filters::selects_sandbox;
use crate::service::RuntimeServer;
use cri_api::v1::{ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter};

/// ListPodSandbox. Waits for no VM.
pub(crate) async fn list_pod_sandbox(
    server: &RuntimeServer,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, CriError> {
    Ok(ListPodSandboxResponse {
        items: selected(server, request.filter),
    })
}

/// The sandboxes that the filter selects.
pub(crate) fn selected(
    server: &RuntimeServer,
    filter: Option<PodSandboxFilter>,
) -> Vec<PodSandbox> {
    let filter = filter.unwrap_or_default();
    let sandboxes = server.cri_sandboxes().into_iter();
    sandboxes
        .filter(|sandbox| selects_sandbox(&filter, sandbox))
        .map(list_sandbox)
        .collect()
}
