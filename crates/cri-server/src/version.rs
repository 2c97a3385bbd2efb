//! Version: what speaks here.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{VersionRequest, VersionResponse};

/// Version of the kubelet's own API, the same since its first release.
const KUBELET_API: &str = "0.1.0";

/// Version.
pub(crate) async fn version(
    server: &RuntimeServer,
    _request: VersionRequest,
) -> Result<VersionResponse, CriError> {
    Ok(VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "spherule".to_owned(),
        runtime_version: server.config.version.clone(),
        runtime_api_version: "v1".to_owned(),
    })
}
