//! ExecSync.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{ExecSyncRequest, ExecSyncResponse};
use std::time::Duration;

/// Most bytes kept of each output.
const MAX_OUTPUT: usize = 16 << 20;
/// What clients take in one message, with room for the rest of the answer.
const MAX_ANSWER: usize = MAX_OUTPUT - 4096;

/// ExecSync: runs a command to its end. That it fails is an answer; the time
/// running out is an error, and the command is killed.
pub(crate) async fn exec_sync(
    server: &RuntimeServer,
    request: ExecSyncRequest,
) -> Result<ExecSyncResponse, CriError> {
    if request.cmd.is_empty() {
        return Err(CriError::invalid("cmd", "required"));
    }
    if request.cmd.iter().any(|word| word.contains('\0')) {
        return Err(CriError::invalid("cmd", "contains a zero byte"));
    }
    let seconds = u64::try_from(request.timeout)
        .map_err(|_| CriError::invalid("timeout", "must not be negative"))?;
    let timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
    let found = server.find_container(&request.container_id)?;
    let mut result = server
        .sandboxes
        .exec_sync(found.id(), request.cmd, timeout, MAX_ANSWER)
        .await?;
    // Both together are one message.
    let rest = MAX_ANSWER.saturating_sub(result.stdout.len());
    result.stderr.truncate(rest);
    Ok(ExecSyncResponse {
        stdout: result.stdout,
        stderr: result.stderr,
        exit_code: result.code,
    })
}
