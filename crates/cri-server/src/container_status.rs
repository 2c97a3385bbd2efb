//! ContainerStatus.

use crate::convert;
use crate::error::CriError;
use crate::record::CriContainer;
use crate::service::RuntimeServer;
use cri_api::v1::{ContainerStatusRequest, ContainerStatusResponse};
use serde_json::json;
use std::collections::HashMap;

/// ContainerStatus. Waits for no VM.
pub(crate) async fn container_status(
    server: &RuntimeServer,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, CriError> {
    let found = server.find_container(&request.container_id)?;
    Ok(ContainerStatusResponse {
        status: Some(convert::container_status(&found)),
        info: if request.verbose {
            info(&found)
        } else {
            HashMap::new()
        },
    })
}

fn info(found: &CriContainer) -> HashMap<String, String> {
    let container = &found.container;
    let spec = &container.spec;
    let text = json!({
        "sandboxID": container.sandbox_id,
        // Of the guest.
        "pid": container.pid,
        "state": container.state,
        "exit": container.exit,
        "image": container.image_id,
        "process": {
            "args": spec.process.args,
            "env": spec.process.env,
            "cwd": spec.process.cwd,
            "capabilities": spec.process.capabilities,
            "ambientCapabilities": spec.process.ambient_capabilities,
            "noNewPrivileges": spec.process.no_new_privileges,
            "oomScoreAdj": spec.process.oom_score_adj,
            "terminal": spec.process.terminal,
            "seccompInstructions": spec.process.seccomp.len() / 8,
        },
        "mounts": spec.mounts,
        "devices": spec.devices,
        "resources": spec.resources,
        "readonlyRootfs": spec.readonly_rootfs,
        "privileged": spec.privileged,
        "pidNamespace": spec.pid_namespace,
        "paths": spec.paths,
        "stages": container.stages,
    });
    HashMap::from([("info".to_owned(), text.to_string())])
}
