//! UpdateContainerResources.
//!
//! Without effect: `oom_score_adj` (processes that run keep theirs),
//! `annotations`.

use crate::error::CriError;
use crate::resources::{UPDATED, in_force, keep, merged, oom_score_adj, to_spec};
use crate::service::RuntimeServer;
use crate::sizing::{check_fits, needs};
use cri_api::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};
use std::collections::BTreeMap;

/// UpdateContainerResources: of a created or running container; what the request
/// leaves out stays as it is. A limit that the VM could not give is refused.
pub(crate) async fn update_container_resources(
    server: &RuntimeServer,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, CriError> {
    if request.windows.is_some() {
        let message = "this node runs Linux containers only";
        return Err(CriError::invalid("windows", message));
    }
    let found = server.find_container(&request.container_id)?;
    let Some(change) = request.linux else {
        return Ok(UpdateContainerResourcesResponse {});
    };
    let sandbox = server.find_sandbox(&found.container.sandbox_id)?;
    let pod = sandbox.config.linux.unwrap_or_default();
    let memory = change.memory_limit_in_bytes != 0;
    let cpu = change.cpu_quota != 0 || change.cpu_period != 0;
    let wanted = merged(in_force(&found), change);
    let limits = to_spec("linux", &wanted, sandbox.sandbox.spec.vcpus)?;
    let overhead = pod.overhead.unwrap_or_default();
    let mut needed = needs("linux", &wanted, &overhead, &server.config)?;
    // What it was made with may be more than the VM has.
    needed.memory_mib = needed.memory_mib.filter(|_| memory);
    needed.vcpus = needed.vcpus.filter(|_| cpu);
    check_fits("linux", &sandbox.sandbox.spec, &needed)?;
    oom_score_adj("linux", &wanted)?;
    server
        .sandboxes
        .update_container(found.id(), limits)
        .await?;
    // For the status, in the CRI's own words.
    let kept = BTreeMap::from([(UPDATED.to_owned(), keep(&wanted))]);
    server
        .sandboxes
        .annotate_container(found.id(), kept)
        .await?;
    Ok(UpdateContainerResourcesResponse {})
}
