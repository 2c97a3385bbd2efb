//! Status: conditions, handlers, features, and what the daemon found of its node.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus,
    StatusRequest, StatusResponse,
};
use serde_json::json;
use std::collections::HashMap;

/// Status.
pub(crate) async fn status(
    server: &RuntimeServer,
    request: StatusRequest,
) -> Result<StatusResponse, CriError> {
    let config = &server.config;
    let handlers = config.handlers.iter().map(String::as_str);
    Ok(StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", true, "", String::new()),
                network_condition(server).await,
            ],
        }),
        info: if request.verbose {
            info(server)
        } else {
            HashMap::new()
        },
        runtime_handlers: [""].into_iter().chain(handlers).map(handler).collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: false,
        }),
    })
}

fn condition(name: &str, status: bool, reason: &str, message: String) -> RuntimeCondition {
    RuntimeCondition {
        r#type: name.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// NetworkReady. A kubelet places no pod on a node where it is not true.
async fn network_condition(server: &RuntimeServer) -> RuntimeCondition {
    let of = |status, reason, message| condition("NetworkReady", status, reason, message);
    if !server.config.network {
        let message = "pods have their loopback only (spherule serve --network none)";
        return of(true, "LoopbackOnly", message.to_owned());
    }
    match server.sandboxes.network_status().await {
        Ok(_) => of(true, "", String::new()),
        Err(error) => of(false, "NetworkPluginNotReady", sandbox::chain(&error)),
    }
}

fn handler(name: &str) -> RuntimeHandler {
    RuntimeHandler {
        name: name.to_owned(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: true,
        }),
    }
}

fn info(server: &RuntimeServer) -> HashMap<String, String> {
    let config = &server.config;
    let text = json!({
        "config": {
            "handlers": config.handlers,
            "defaultVcpus": config.vcpus,
            "defaultMemoryMiB": config.memory_mib,
            "overheadMiB": config.overhead_mib,
            "vmmMiB": config.vmm_mib,
            "maxMemoryMiB": config.max_memory_mib,
        },
        "version": config.version,
        "node": config.facts,
        "sandboxes": server.cri_sandboxes().len(),
    });
    HashMap::from([("info".to_owned(), text.to_string())])
}
