//! ExecSync.

use crate::error::CriError;
use crate::service::RuntimeServer;
use cri_api::v1::{ExecSyncRequest, ExecSyncResponse};
use sandbox::ExecResult;
use std::time::Duration;

/// Most bytes kept of each output.
const MAX_OUTPUT: usize = 16 << 20;
/// What clients take in one message, with room for the rest of the answer.
const MAX_ANSWER: usize = MAX_OUTPUT - 4096;
/// The end of stderr where there was more: an answer has no other place for it.
const DROPPED: &[u8] = b"\n[output beyond 16 MiB was dropped]\n";

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
    fit(&mut result);
    Ok(ExecSyncResponse {
        stdout: result.stdout,
        stderr: result.stderr,
        exit_code: result.code,
    })
}

/// Makes both outputs fit one message; says so where something was dropped.
fn fit(result: &mut ExecResult) {
    let dropped = result.truncated || result.stdout.len() + result.stderr.len() > MAX_ANSWER;
    if !dropped {
        return;
    }
    result.stdout.truncate(MAX_ANSWER - DROPPED.len());
    let rest = MAX_ANSWER - DROPPED.len() - result.stdout.len();
    result.stderr.truncate(rest);
    result.stderr.extend_from_slice(DROPPED);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(stdout: usize, stderr: usize, truncated: bool) -> (usize, Vec<u8>) {
        let mut result = ExecResult {
            stdout: vec![b'o'; stdout],
            stderr: vec![b'e'; stderr],
            truncated,
            ..ExecResult::default()
        };
        fit(&mut result);
        assert!(result.stdout.len() + result.stderr.len() <= MAX_ANSWER);
        (result.stdout.len(), result.stderr)
    }

    #[test]
    fn output_that_is_dropped_is_told_of() {
        assert_eq!(fitted(5, 1, false), (5, b"e".to_vec()));
        assert_eq!(fitted(MAX_ANSWER, 0, false), (MAX_ANSWER, Vec::new()));
        let (kept, told) = fitted(MAX_ANSWER, 0, true);
        assert_eq!((kept, &*told), (MAX_ANSWER - DROPPED.len(), DROPPED));
        let (kept, told) = fitted(5, MAX_ANSWER, false);
        assert!(kept == 5 && told.ends_with(DROPPED) && told.starts_with(b"eee"));
    }
}
