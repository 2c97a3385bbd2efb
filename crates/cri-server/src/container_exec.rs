//! Exec: the URL where a command's streams are served.

use crate::error::CriError;
use crate::service::RuntimeServer;
use crate::streaming::{require_running, wanted};
use cri_api::v1::{ExecRequest, ExecResponse};

/// Exec: checks the request; the command is run for whoever comes with the URL.
pub(crate) async fn exec(
    server: &RuntimeServer,
    request: ExecRequest,
) -> Result<ExecResponse, CriError> {
    let found = server.find_container(&request.container_id)?;
    if request.cmd.first().is_none_or(String::is_empty) {
        return Err(CriError::invalid("cmd", "required"));
    }
    if request.cmd.iter().any(|word| word.contains('\0')) {
        return Err(CriError::invalid("cmd", "contains a zero byte"));
    }
    let streams = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    require_running(&found)?;
    let url = server.streams.exec(streaming_server::ExecRequest {
        container: found.id().to_owned(),
        command: request.cmd,
        streams,
    })?;
    Ok(ExecResponse { url })
}
