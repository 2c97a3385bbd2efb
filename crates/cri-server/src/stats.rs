//! Statistics of containers and sandboxes.

use crate::error::CriError;
use crate::pages::Pages;
use crate::service::RuntimeServer;
use cri_api::v1::*;

/// ContainerStats.
pub(crate) async fn container_stats(
    _server: &RuntimeServer,
    _request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "ContainerStats",
        reason: "it is being written",
    })
}

/// ListContainerStats.
pub(crate) async fn list_container_stats(
    _server: &RuntimeServer,
    _request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "ListContainerStats",
        reason: "it is being written",
    })
}

/// StreamContainerStats.
pub(crate) async fn stream_container_stats(
    _server: &RuntimeServer,
    _request: StreamContainerStatsRequest,
) -> Result<Pages<StreamContainerStatsResponse>, CriError> {
    Err(CriError::Unimplemented {
        call: "StreamContainerStats",
        reason: "it is being written",
    })
}

/// PodSandboxStats.
pub(crate) async fn pod_sandbox_stats(
    _server: &RuntimeServer,
    _request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "PodSandboxStats",
        reason: "it is being written",
    })
}

/// ListPodSandboxStats.
pub(crate) async fn list_pod_sandbox_stats(
    _server: &RuntimeServer,
    _request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "ListPodSandboxStats",
        reason: "it is being written",
    })
}

/// StreamPodSandboxStats.
pub(crate) async fn stream_pod_sandbox_stats(
    _server: &RuntimeServer,
    _request: StreamPodSandboxStatsRequest,
) -> Result<Pages<StreamPodSandboxStatsResponse>, CriError> {
    Err(CriError::Unimplemented {
        call: "StreamPodSandboxStats",
        reason: "it is being written",
    })
}
