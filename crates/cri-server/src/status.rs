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
            conditions: conditions(),
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

/// A kubelet places no pod on a node whose network is not ready: pods that need
/// none but their loopback run today.
fn conditions() -> Vec<RuntimeCondition> {
    vec![
        RuntimeCondition {
            r#type: "RuntimeReady".to_owned(),
            status: true,
            reason: String::new(),
            message: String::new(),
        },
        RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: true,
            reason: "LoopbackOnly".to_owned(),
            message: "pods have their loopback interface and no other: this version runs no CNI \
                      plugins"
                .to_owned(),
        },
    ]
}

fn handler(name: &str) -> RuntimeHandler {
    RuntimeHandler {
        name: name.to_owned(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: false,
            user_namespaces: false,
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
            "maxMemoryMiB": config.max_memory_mib,
        },
        "version": config.version,
        "node": config.facts,
        "sandboxes": server.cri_sandboxes().len(),
    });
    HashMap::from([("info".to_owned(), text.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_conditions_that_the_kubelet_needs_are_there_and_true() {
        let conditions = conditions();
        for name in ["RuntimeReady", "NetworkReady"] {
            assert!(
                conditions.iter().any(|c| c.r#type == name && c.status),
                "{name}"
            );
        }
        assert!(conditions[1].message.contains("loopback"));
    }
}
