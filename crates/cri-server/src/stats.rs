//! Statistics of containers and sandboxes: the six calls.

use crate::error::CriError;
use crate::filters::has_labels;
use crate::pages::{Pages, pages};
use crate::record::{CriContainer, CriSandbox};
use crate::service::RuntimeServer;
use crate::stats_convert as convert;
use cri_api::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatsResponse,
    ListContainerStatsRequest, ListContainerStatsResponse, ListPodSandboxStatsRequest,
    ListPodSandboxStatsResponse, PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest,
    PodSandboxStatsResponse, StreamContainerStatsRequest, StreamContainerStatsResponse,
    StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse,
};
use sandbox::{ContainerState, SandboxState, SandboxStats};
use std::collections::BTreeSet;

/// ContainerStats, of a running container.
pub(crate) async fn container_stats(
    server: &RuntimeServer,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, CriError> {
    let found = server.find_container(&request.container_id)?;
    if found.container.state != ContainerState::Running {
        return Err(CriError::Precondition(format!(
            "container {} is {:?}; only a running one has statistics",
            found.id(),
            found.container.state
        )));
    }
    let figures = server.sandboxes.container_stats(found.id()).await?;
    Ok(ContainerStatsResponse {
        stats: Some(server.container_figures(&found, &figures)),
    })
}

/// ListContainerStats: of running containers.
pub(crate) async fn list_container_stats(
    server: &RuntimeServer,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, CriError> {
    let stats = selected_containers(server, request.filter).await;
    Ok(ListContainerStatsResponse { stats })
}

/// StreamContainerStats: as ListContainerStats, in pages.
pub(crate) async fn stream_container_stats(
    server: &RuntimeServer,
    request: StreamContainerStatsRequest,
) -> Result<Pages<StreamContainerStatsResponse>, CriError> {
    let stats = selected_containers(server, request.filter).await;
    Ok(pages(stats, |container_stats| {
        StreamContainerStatsResponse { container_stats }
    }))
}

/// PodSandboxStats. One that is not ready has no figures.
pub(crate) async fn pod_sandbox_stats(
    server: &RuntimeServer,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, CriError> {
    let found = server.find_sandbox(&request.pod_sandbox_id)?;
    let stats = if found.sandbox.state == SandboxState::Ready {
        let figures = server.sandboxes.stats(found.id()).await?;
        server.sandbox_figures(&found, &figures)
    } else {
        convert::sandbox_without_figures(&found)
    };
    Ok(PodSandboxStatsResponse { stats: Some(stats) })
}

/// ListPodSandboxStats: of ready sandboxes.
pub(crate) async fn list_pod_sandbox_stats(
    server: &RuntimeServer,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, CriError> {
    let stats = selected_sandboxes(server, request.filter).await;
    Ok(ListPodSandboxStatsResponse { stats })
}

/// StreamPodSandboxStats: as ListPodSandboxStats, in pages.
pub(crate) async fn stream_pod_sandbox_stats(
    server: &RuntimeServer,
    request: StreamPodSandboxStatsRequest,
) -> Result<Pages<StreamPodSandboxStatsResponse>, CriError> {
    let stats = selected_sandboxes(server, request.filter).await;
    Ok(pages(stats, |pod_sandbox_stats| {
        StreamPodSandboxStatsResponse { pod_sandbox_stats }
    }))
}

async fn selected_containers(
    server: &RuntimeServer,
    filter: Option<ContainerStatsFilter>,
) -> Vec<ContainerStats> {
    let filter = filter.unwrap_or_default();
    let mut containers = server.cri_containers();
    containers.retain(|container| {
        let of = &container.container;
        of.state == ContainerState::Running
            && of.id.starts_with(&filter.id)
            && of.sandbox_id.starts_with(&filter.pod_sandbox_id)
            && has_labels(&container.config.labels, &filter.label_selector)
    });
    let sandboxes: BTreeSet<&str> = containers
        .iter()
        .map(|container| container.container.sandbox_id.as_str())
        .collect();
    let figures = server.figures.of(&sandboxes).await;
    containers
        .iter()
        .filter_map(|container| {
            let sandbox = figures.get(&container.container.sandbox_id)?;
            let own = |stats: &&sandbox::ContainerStats| stats.container_id == container.id();
            let found = sandbox.containers.iter().find(own)?;
            Some(server.container_figures(container, found))
        })
        .collect()
}

async fn selected_sandboxes(
    server: &RuntimeServer,
    filter: Option<PodSandboxStatsFilter>,
) -> Vec<PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let sandboxes = server.ready_sandboxes(|sandbox| {
        sandbox.id().starts_with(&filter.id)
            && has_labels(&sandbox.config.labels, &filter.label_selector)
    });
    let ids = sandboxes.iter().map(CriSandbox::id).collect();
    let figures = server.figures.of(&ids).await;
    sandboxes
        .iter()
        .filter_map(|sandbox| {
            let found = figures.get(sandbox.id())?;
            Some(server.sandbox_figures(sandbox, found))
        })
        .collect()
}

impl RuntimeServer {
    /// The ready sandboxes that are such.
    pub(crate) fn ready_sandboxes(&self, such: impl Fn(&CriSandbox) -> bool) -> Vec<CriSandbox> {
        let mut sandboxes = self.cri_sandboxes();
        sandboxes.retain(|sandbox| sandbox.sandbox.state == SandboxState::Ready && such(sandbox));
        sandboxes
    }

    fn container_figures(
        &self,
        container: &CriContainer,
        figures: &sandbox::ContainerStats,
    ) -> ContainerStats {
        let rate = self.figures.rate(
            container.id(),
            figures.timestamp_ns,
            figures.usage.cpu.total_ns,
            container.container.started_at_ns,
        );
        convert::container(container, figures, rate, &self.pods_dir())
    }

    fn sandbox_figures(&self, sandbox: &CriSandbox, figures: &SandboxStats) -> PodSandboxStats {
        let rate = self.figures.rate(
            sandbox.id(),
            figures.timestamp_ns,
            convert::pod_cpu_ns(figures),
            sandbox.sandbox.ready_at_ns,
        );
        let running = self.containers_of(sandbox.id());
        let containers = running
            .iter()
            .filter(|container| container.container.state == ContainerState::Running)
            .filter_map(|container| {
                let own = |stats: &&sandbox::ContainerStats| stats.container_id == container.id();
                let found = figures.containers.iter().find(own)?;
                Some(self.container_figures(container, found))
            })
            .collect();
        convert::sandbox(sandbox, figures, rate, containers)
    }

    /// Where writable layers lie on the node.
    fn pods_dir(&self) -> String {
        let root = &self.sandboxes.config().root;
        root.join("pods").display().to_string()
    }
}
