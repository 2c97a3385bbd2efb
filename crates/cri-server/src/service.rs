//! RuntimeService: delegates to one function a call, traces, maps errors.

use crate::error::CriError;
use crate::events_ledger::Ledger;
use crate::pages::Pages;
use crate::runtime_config_update::PodRanges;
use crate::stats_figures::Figures;
use crate::{
    Config, container_attach, container_checkpoint, container_create, container_exec,
    container_exec_sync, container_list, container_remove, container_reopen_log, container_start,
    container_status, container_stop, container_stream, container_update_resources, events,
    metrics, runtime_config, runtime_config_update, sandbox_checkpoint, sandbox_list,
    sandbox_port_forward, sandbox_remove, sandbox_restore, sandbox_run, sandbox_status,
    sandbox_stop, sandbox_stream, sandbox_update_resources, stats, status, version,
};
use cri_api::v1::runtime_service_server::RuntimeService;
use cri_api::v1::*;
use image_store::ImageStore;
use sandbox::{Sandboxes, chain};
use state_store::StateStore;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;
use streaming_server::StreamUrls;
use tonic::{Request, Response, Status, async_trait};

/// The RuntimeService of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RuntimeServer {
    pub(crate) sandboxes: Sandboxes,
    pub(crate) images: ImageStore,
    pub(crate) config: Arc<Config>,
    pub(crate) figures: Figures,
    pub(crate) ledger: Ledger,
    pub(crate) pod_ranges: PodRanges,
    pub(crate) streams: StreamUrls,
}

impl RuntimeServer {
    /// Serves what `sandboxes` and `images` have; what events were delivered, and the
    /// ranges of pods' addresses, are kept in `state`. Commands are served at `streams`, of a server with
    /// [`crate::streaming_backend`].
    pub fn new(
        sandboxes: Sandboxes,
        images: ImageStore,
        state: &StateStore,
        streams: StreamUrls,
        config: Config,
    ) -> Self {
        Self {
            figures: Figures::new(sandboxes.clone()),
            ledger: Ledger::new(state),
            pod_ranges: PodRanges::new(state),
            sandboxes,
            images,
            config: Arc::new(config),
            streams,
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// The answer of a call, traced; its error with a code.
pub(crate) async fn answer<T>(
    call: &'static str,
    work: impl Future<Output = Result<T, CriError>>,
) -> Answer<T> {
    let start = Instant::now();
    let result = work.await;
    let elapsed = start.elapsed();
    match result {
        Ok(message) => {
            tracing::debug!(call, ?elapsed, "answered");
            Ok(Response::new(message))
        }
        Err(error) => {
            tracing::info!(call, ?elapsed, error = chain(&error), "failed");
            Err(error.into())
        }
    }
}

#[async_trait]
impl RuntimeService for RuntimeServer {
    async fn version(&self, request: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer("Version", version::version(self, request.into_inner())).await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        answer(
            "RunPodSandbox",
            sandbox_run::run_pod_sandbox(self, request.into_inner()),
        )
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        answer(
            "StopPodSandbox",
            sandbox_stop::stop_pod_sandbox(self, request.into_inner()),
        )
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        answer(
            "RemovePodSandbox",
            sandbox_remove::remove_pod_sandbox(self, request.into_inner()),
        )
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        answer(
            "PodSandboxStatus",
            sandbox_status::pod_sandbox_status(self, request.into_inner()),
        )
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        answer(
            "ListPodSandbox",
            sandbox_list::list_pod_sandbox(self, request.into_inner()),
        )
        .await
    }

    type StreamPodSandboxesStream = Pages<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        answer(
            "StreamPodSandboxes",
            sandbox_stream::stream_pod_sandboxes(self, request.into_inner()),
        )
        .await
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        answer(
            "CreateContainer",
            container_create::create_container(self, request.into_inner()),
        )
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        answer(
            "StartContainer",
            container_start::start_container(self, request.into_inner()),
        )
        .await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        answer(
            "StopContainer",
            container_stop::stop_container(self, request.into_inner()),
        )
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        answer(
            "RemoveContainer",
            container_remove::remove_container(self, request.into_inner()),
        )
        .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        answer(
            "ListContainers",
            container_list::list_containers(self, request.into_inner()),
        )
        .await
    }

    type StreamContainersStream = Pages<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        answer(
            "StreamContainers",
            container_stream::stream_containers(self, request.into_inner()),
        )
        .await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        answer(
            "ContainerStatus",
            container_status::container_status(self, request.into_inner()),
        )
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        answer(
            "UpdateContainerResources",
            container_update_resources::update_container_resources(self, request.into_inner()),
        )
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        answer(
            "ReopenContainerLog",
            container_reopen_log::reopen_container_log(self, request.into_inner()),
        )
        .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        answer(
            "ExecSync",
            container_exec_sync::exec_sync(self, request.into_inner()),
        )
        .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        answer("Exec", container_exec::exec(self, request.into_inner())).await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        answer(
            "Attach",
            container_attach::attach(self, request.into_inner()),
        )
        .await
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Answer<PortForwardResponse> {
        answer(
            "PortForward",
            sandbox_port_forward::port_forward(self, request.into_inner()),
        )
        .await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        answer(
            "ContainerStats",
            stats::container_stats(self, request.into_inner()),
        )
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        answer(
            "ListContainerStats",
            stats::list_container_stats(self, request.into_inner()),
        )
        .await
    }

    type StreamContainerStatsStream = Pages<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        answer(
            "StreamContainerStats",
            stats::stream_container_stats(self, request.into_inner()),
        )
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        answer(
            "PodSandboxStats",
            stats::pod_sandbox_stats(self, request.into_inner()),
        )
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        answer(
            "ListPodSandboxStats",
            stats::list_pod_sandbox_stats(self, request.into_inner()),
        )
        .await
    }

    type StreamPodSandboxStatsStream = Pages<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        answer(
            "StreamPodSandboxStats",
            stats::stream_pod_sandbox_stats(self, request.into_inner()),
        )
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        answer(
            "UpdateRuntimeConfig",
            runtime_config_update::update_runtime_config(self, request.into_inner()),
        )
        .await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        answer("Status", status::status(self, request.into_inner())).await
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        answer(
            "CheckpointContainer",
            container_checkpoint::checkpoint_container(self, request.into_inner()),
        )
        .await
    }

    async fn checkpoint_pod(
        &self,
        request: Request<CheckpointPodRequest>,
    ) -> Answer<CheckpointPodResponse> {
        answer(
            "CheckpointPod",
            sandbox_checkpoint::checkpoint_pod(self, request.into_inner()),
        )
        .await
    }

    async fn restore_pod(&self, request: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        answer(
            "RestorePod",
            sandbox_restore::restore_pod(self, request.into_inner()),
        )
        .await
    }

    type GetContainerEventsStream = Pages<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        request: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        answer(
            "GetContainerEvents",
            events::get_container_events(self, request.into_inner()),
        )
        .await
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer(
            "ListMetricDescriptors",
            metrics::list_metric_descriptors(self, request.into_inner()),
        )
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        answer(
            "ListPodSandboxMetrics",
            metrics::list_pod_sandbox_metrics(self, request.into_inner()),
        )
        .await
    }

    type StreamPodSandboxMetricsStream = Pages<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        answer(
            "StreamPodSandboxMetrics",
            metrics::stream_pod_sandbox_metrics(self, request.into_inner()),
        )
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<RuntimeConfigRequest>,
    ) -> Answer<RuntimeConfigResponse> {
        answer(
            "RuntimeConfig",
            runtime_config::runtime_config(self, request.into_inner()),
        )
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        answer(
            "UpdatePodSandboxResources",
            sandbox_update_resources::update_pod_sandbox_resources(self, request.into_inner()),
        )
        .await
    }
}
