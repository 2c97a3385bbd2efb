//! RuntimeConfig: which cgroup driver the kubelet should use.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse,
};

/// RuntimeConfig. Containers' cgroups are the guests' own, where no systemd is.
pub(crate) async fn runtime_config(
    _server: &RuntimeServer,
    _request: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse, CriError> {
    Ok(RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: CgroupDriver::Cgroupfs.into(),
        }),
    })
}
