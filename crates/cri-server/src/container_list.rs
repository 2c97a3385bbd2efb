//! ListContainers.

use crate::convert::list_container;
use crate::error::CriError;
use crate::filters::selects_container;
use crate::service::RuntimeServer;
use cri_api::v1::{Container, ContainerFilter, ListContainersRequest, ListContainersResponse};

/// ListContainers. Waits for no VM.
pub(crate) async fn list_containers(
    server: &RuntimeServer,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, CriError> {
    Ok(ListContainersResponse {
        containers: selected(server, request.filter),
    })
}

/// The containers that the filter selects.
pub(crate) fn selected(server: &RuntimeServer, filter: Option<ContainerFilter>) -> Vec<Container> {
    let filter = filter.unwrap_or_default();
    let containers = server.cri_containers().into_iter();
    containers
        .filter(|container| selects_container(&filter, container))
        .map(list_container)
        .collect()
}
