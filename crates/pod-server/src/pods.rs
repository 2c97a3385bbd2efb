//! PodService: delegates, nothing else.

mod disk_usage;
mod ending;
mod ephemeral;
mod info;
mod logs;
mod objects;
mod others;
mod port_forward;
mod session;
mod target;
mod watch;

use crate::{convert, status};
use others::Others;
use pod_api::v1::pod_service_server::PodService;
use pod_api::v1::{
    AddEphemeralContainerRequest, AddEphemeralContainerResponse, ApplyObjectsRequest,
    ApplyObjectsResponse, AttachRequest, DeleteObjectRequest, DeleteObjectResponse,
    DiskUsageRequest, DiskUsageResponse, ExecRequest, GetPodRequest, GetPodResponse, InfoRequest,
    InfoResponse, ListObjectsRequest, ListObjectsResponse, ListPodsRequest, ListPodsResponse,
    LogsRequest, LogsResponse, PortForwardRequest, PortForwardResponse, RemovePodRequest,
    RemovePodResponse, RunPodRequest, RunPodResponse, SessionOutput, StopPodRequest,
    StopPodResponse, WatchPodRequest, WatchPodResponse,
};
use pod_engine::{EngineError, PodEngine};
use sandbox::Sandboxes;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

pub use ending::{ENDING, End};
pub use info::Facts;

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct Pods {
    engine: PodEngine,
    others: Others,
    sandboxes: Sandboxes,
    facts: Arc<Facts>,
    end: End,
}

impl Pods {
    /// Serves this engine, and the sandboxes that others made; `facts` is what Info
    /// says beside it. At the `end` those who hear streams of answers are told of it.
    pub fn new(engine: PodEngine, sandboxes: Sandboxes, facts: Facts, end: End) -> Self {
        Self {
            engine,
            others: Others::new(sandboxes.clone()),
            sandboxes,
            facts: Arc::new(facts),
            end,
        }
    }

    fn until_end<T: Send + 'static>(
        &self,
        answers: impl Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
    ) -> Response<Answers<T>> {
        Response::new(ending::until(self.end.clone(), answers))
    }
}

#[tonic::async_trait]
impl PodService for Pods {
    async fn run_pod(
        &self,
        request: Request<RunPodRequest>,
    ) -> Result<Response<RunPodResponse>, Status> {
        let request = request.into_inner();
        let engine = convert::requested_engine(request.engine)?;
        self.facts.check(request.engine)?;
        let pod = self.engine.run_pod(&request.manifest, engine).await;
        let pod = pod.map_err(|e| status::of_engine(&e))?;
        Ok(Response::new(RunPodResponse {
            pod: Some(convert::pod(&pod)),
        }))
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        let selector = request.into_inner().label_selector.into_iter().collect();
        let pods = self.engine.list(&selector);
        let mut pods: Vec<_> = pods.iter().map(|pod| convert::pod(pod)).collect();
        pods.extend(self.others.list(&selector));
        Ok(Response::new(ListPodsResponse { pods }))
    }

    async fn get_pod(
        &self,
        request: Request<GetPodRequest>,
    ) -> Result<Response<GetPodResponse>, Status> {
        let pod = self.pod(&request.into_inner().pod)?;
        Ok(Response::new(GetPodResponse { pod: Some(pod) }))
    }

    async fn add_ephemeral_container(
        &self,
        request: Request<AddEphemeralContainerRequest>,
    ) -> Result<Response<AddEphemeralContainerResponse>, Status> {
        let pod = ephemeral::add(self, request.into_inner()).await?;
        Ok(Response::new(AddEphemeralContainerResponse {
            pod: Some(pod),
        }))
    }

    type WatchPodStream = Answers<WatchPodResponse>;

    async fn watch_pod(
        &self,
        request: Request<WatchPodRequest>,
    ) -> Result<Response<Self::WatchPodStream>, Status> {
        let pods = watch::watch(&self.engine, &request.into_inner().pod)?;
        Ok(self.until_end(pods))
    }

    async fn stop_pod(
        &self,
        request: Request<StopPodRequest>,
    ) -> Result<Response<StopPodResponse>, Status> {
        let request = request.into_inner();
        let grace = request
            .grace_period_seconds
            .map(|s| Duration::from_secs(s.into()));
        let pod = match self.engine.stop(&request.pod, grace).await {
            Err(EngineError::NoSuchPod(_)) => self.others.stop(&request.pod, grace).await?,
            pod => convert::pod(&*pod.map_err(|e| status::of_engine(&e))?),
        };
        Ok(Response::new(StopPodResponse { pod: Some(pod) }))
    }

    async fn remove_pod(
        &self,
        request: Request<RemovePodRequest>,
    ) -> Result<Response<RemovePodResponse>, Status> {
        let request = request.into_inner();
        // Of a pod that the engine does not know this is no error.
        let removed = self.engine.remove(&request.pod, request.force).await;
        removed.map_err(|e| status::of_engine(&e))?;
        self.others.remove(&request.pod, request.force).await?;
        Ok(Response::new(RemovePodResponse {}))
    }

    type LogsStream = Answers<LogsResponse>;

    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let records = logs::logs(&self.engine, &self.others, request.into_inner())?;
        Ok(self.until_end(records))
    }

    type ExecStream = Answers<SessionOutput>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let output = session::exec(self, request.into_inner()).await?;
        Ok(self.until_end(output))
    }

    type AttachStream = Answers<SessionOutput>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let output = session::attach(self, request.into_inner()).await?;
        Ok(self.until_end(output))
    }

    type PortForwardStream = Answers<PortForwardResponse>;

    async fn port_forward(
        &self,
        request: Request<Streaming<PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        let answers = port_forward::open(self, request.into_inner()).await?;
        Ok(self.until_end(answers))
    }

    async fn apply_objects(
        &self,
        request: Request<ApplyObjectsRequest>,
    ) -> Result<Response<ApplyObjectsResponse>, Status> {
        let applied = objects::apply(&self.engine, request.into_inner()).await;
        applied.map(Response::new)
    }

    async fn list_objects(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        objects::list(&self.engine, request.get_ref()).map(Response::new)
    }

    async fn delete_object(
        &self,
        request: Request<DeleteObjectRequest>,
    ) -> Result<Response<DeleteObjectResponse>, Status> {
        let deleted = objects::delete(&self.engine, request.into_inner()).await;
        deleted.map(Response::new)
    }

    async fn disk_usage(
        &self,
        _: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        let usage = disk_usage::disk_usage(&self.sandboxes, &self.facts.images).await?;
        Ok(Response::new(usage))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let answer = self.facts.answer(&self.engine, &self.others).await;
        Ok(Response::new(answer))
    }
}
