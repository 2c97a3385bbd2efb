//! WatchPod: the pod as it is, then after every change, until it is removed.

use super::Answers;
use crate::{convert, status};
use pod_api::v1::WatchPodResponse;
use pod_engine::PodEngine;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

/// Changes that come faster than the caller reads become one.
pub(crate) fn watch(engine: &PodEngine, pod: &str) -> Result<Answers<WatchPodResponse>, Status> {
    let changes = engine.watch(pod).map_err(|e| status::of_engine(&e))?;
    let answers = WatchStream::new(changes).map(|pod| {
        Ok(WatchPodResponse {
            pod: Some(convert::pod(&pod)),
        })
    });
    Ok(Box::pin(answers))
}
