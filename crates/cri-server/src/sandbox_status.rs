//! PodSandboxStatus.

use crate::convert::{container_status, sandbox_status};
use crate::error::CriError;
use crate::record::CriSandbox;
use crate::service::RuntimeServer;
use cri_api::v1::{PodSandboxStatusRequest, PodSandboxStatusResponse};
use sandbox::NotReadyReason;
use serde_json::json;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// PodSandboxStatus. Waits for no VM.
pub(crate) async fn pod_sandbox_status(
    server: &RuntimeServer,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, CriError> {
    let timestamp = now_ns();
    let found = server.find_sandbox(&request.pod_sandbox_id)?;
    let containers = server.containers_of(found.id());
    Ok(PodSandboxStatusResponse {
        status: Some(sandbox_status(&found)),
        info: if request.verbose {
            info(&found)
        } else {
            HashMap::new()
        },
        containers_statuses: containers.iter().map(container_status).collect(),
        timestamp,
    })
}

/// Nanoseconds since the epoch.
fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

fn info(found: &CriSandbox) -> HashMap<String, String> {
    let sandbox = &found.sandbox;
    let reason = match &sandbox.reason {
        None => String::new(),
        Some(NotReadyReason::Stopped) => "stopped".to_owned(),
        Some(NotReadyReason::VmDied(cause)) => format!("its VM ended: {cause}"),
    };
    let text = json!({
        "sandboxID": sandbox.spec.id,
        "pid": sandbox.vmm_pid().unwrap_or(0),
        "enginePid": sandbox.engine_pid,
        "engine": sandbox.engine,
        "state": sandbox.state,
        "reason": reason,
        "vcpus": sandbox.spec.vcpus,
        "memoryMiB": sandbox.spec.memory_mib,
        "limits": sandbox.spec.resources,
        "hostname": sandbox.spec.hostname,
        "dns": sandbox.spec.dns,
        "network": sandbox.network.as_ref().map(|network| json!({
            "name": network.list.name,
            "netns": network.netns,
            "interfaces": network.nics,
            "cniResult": network.result,
            "ignoredCapabilities": network.ignored_capabilities(),
        })),
        "sysctls": sandbox.spec.sysctls,
        "guestKernel": sandbox.kernel_release,
        "logDirectory": found.config.log_directory,
        "cgroupParent": sandbox.spec.cgroup_parent,
        "inCgroupParent": sandbox.in_cgroup_parent,
        "readyAt": sandbox.ready_at_ns,
        "finishedAt": sandbox.finished_at_ns,
        "stages": sandbox.stages,
    });
    HashMap::from([("info".to_owned(), text.to_string())])
}
