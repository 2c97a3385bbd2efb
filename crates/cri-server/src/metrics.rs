//! Metric descriptors and metrics: the three calls.

use crate::error::CriError;
use crate::metrics_table::{self, Of};
use crate::pages::{Pages, pages};
use crate::record::{CriContainer, CriSandbox};
use crate::service::RuntimeServer;
use crate::{resources, stats_convert};
use cri_api::v1::{
    ContainerMetrics, ListMetricDescriptorsRequest, ListMetricDescriptorsResponse,
    ListPodSandboxMetricsRequest, ListPodSandboxMetricsResponse, PodSandboxMetrics,
    StreamPodSandboxMetricsRequest, StreamPodSandboxMetricsResponse,
};
use sandbox::{ContainerState, SandboxStats};

/// ListMetricDescriptors.
pub(crate) async fn list_metric_descriptors(
    _server: &RuntimeServer,
    _request: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, CriError> {
    Ok(ListMetricDescriptorsResponse {
        descriptors: metrics_table::descriptors(),
    })
}

/// ListPodSandboxMetrics: of ready sandboxes and their running containers.
pub(crate) async fn list_pod_sandbox_metrics(
    server: &RuntimeServer,
    _request: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, CriError> {
    let pod_metrics = all(server).await;
    Ok(ListPodSandboxMetricsResponse { pod_metrics })
}

/// StreamPodSandboxMetrics: as ListPodSandboxMetrics, in pages.
pub(crate) async fn stream_pod_sandbox_metrics(
    server: &RuntimeServer,
    _request: StreamPodSandboxMetricsRequest,
) -> Result<Pages<StreamPodSandboxMetricsResponse>, CriError> {
    let metrics = all(server).await;
    Ok(pages(metrics, |pod_sandbox_metrics| {
        StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }
    }))
}

async fn all(server: &RuntimeServer) -> Vec<PodSandboxMetrics> {
    let sandboxes = server.ready_sandboxes(|_| true);
    let ids = sandboxes.iter().map(CriSandbox::id).collect();
    let figures = server.figures.of(&ids).await;
    sandboxes
        .iter()
        .filter_map(|sandbox| {
            let found = figures.get(sandbox.id())?;
            let containers = server.containers_of(sandbox.id());
            Some(of_sandbox(sandbox, &containers, found))
        })
        .collect()
}

fn of_sandbox(
    sandbox: &CriSandbox,
    containers: &[CriContainer],
    figures: &SandboxStats,
) -> PodSandboxMetrics {
    let metadata = sandbox.config.metadata.clone().unwrap_or_default();
    let pod = Of {
        labels: [
            String::new(),
            sandbox.id().to_owned(),
            String::new(),
            sandbox.id().to_owned(),
            metadata.namespace.clone(),
            metadata.name.clone(),
        ],
        usage: &figures.usage,
        at_ns: figures.timestamp_ns,
        started_at_ns: sandbox.sandbox.ready_at_ns,
        cpu_ns: stats_convert::pod_cpu_ns(figures),
        overhead_bytes: stats_convert::overhead_bytes(figures),
        container: None,
        interfaces: stats_convert::pod_interfaces(&figures.interfaces),
    };
    let running = containers
        .iter()
        .filter(|container| container.container.state == ContainerState::Running);
    let container_metrics = running
        .filter_map(|container| {
            let own = |stats: &&sandbox::ContainerStats| stats.container_id == container.id();
            let found = figures.containers.iter().find(own)?;
            let config = container.config.metadata.clone().unwrap_or_default();
            let limits = resources::in_force(container);
            let of = Of {
                labels: [
                    config.name,
                    container.id().to_owned(),
                    container.image.clone(),
                    container.id().to_owned(),
                    metadata.namespace.clone(),
                    metadata.name.clone(),
                ],
                usage: &found.usage,
                at_ns: found.timestamp_ns,
                started_at_ns: container.container.started_at_ns,
                cpu_ns: found.usage.cpu.total_ns,
                overhead_bytes: 0,
                container: Some((&container.container.spec, &limits)),
                interfaces: Vec::new(),
            };
            Some(ContainerMetrics {
                container_id: container.id().to_owned(),
                metrics: metrics_table::metrics(&of),
            })
        })
        .collect();
    PodSandboxMetrics {
        pod_sandbox_id: sandbox.id().to_owned(),
        metrics: metrics_table::metrics(&pod),
        container_metrics,
    }
}
