//! Metric descriptors and metrics.

use crate::error::CriError;
use crate::pages::Pages;
use crate::service::RuntimeServer;
use cri_api::v1::*;

/// ListMetricDescriptors.
pub(crate) async fn list_metric_descriptors(
    _server: &RuntimeServer,
    _request: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "ListMetricDescriptors",
        reason: "it is being written",
    })
}

/// ListPodSandboxMetrics.
pub(crate) async fn list_pod_sandbox_metrics(
    _server: &RuntimeServer,
    _request: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, CriError> {
    Err(CriError::Unimplemented {
        call: "ListPodSandboxMetrics",
        reason: "it is being written",
    })
}

/// StreamPodSandboxMetrics.
pub(crate) async fn stream_pod_sandbox_metrics(
    _server: &RuntimeServer,
    _request: StreamPodSandboxMetricsRequest,
) -> Result<Pages<StreamPodSandboxMetricsResponse>, CriError> {
    Err(CriError::Unimplemented {
        call: "StreamPodSandboxMetrics",
        reason: "it is being written",
    })
}
