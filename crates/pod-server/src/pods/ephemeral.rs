//! AddEphemeralContainer: of the engine's pods only. Those of a CRI client are its own
//! to add to, by the CRI.

use super::Pods;
use crate::{convert, status};
use pod_api::v1::{AddEphemeralContainerRequest, Pod};
use pod_engine::EngineError;
use tonic::Status;

pub(super) async fn add(pods: &Pods, request: AddEphemeralContainerRequest) -> Result<Pod, Status> {
    let name = &request.pod;
    match pods.engine.add_ephemeral(name, &request.container).await {
        Ok(pod) => Ok(convert::pod(&pod)),
        Err(EngineError::NoSuchPod(_)) if pods.others.find(name).is_ok() => {
            Err(Status::failed_precondition(format!(
                "pod {name} was made by a CRI client, and gets containers from it alone \
                 (under a kubelet: kubectl debug)"
            )))
        }
        Err(error) => Err(status::of_engine(&error)),
    }
}
