//! A command that is run to its end, its output collected.

use super::{ExecOutput, ExecResult, ExecSpec, exec};
use crate::Inner;
use crate::error::SandboxError;
use crate::registry::{ContainerEntry, Entry};
use std::time::Duration;

/// Runs a command to its end, at most for `timeout`; of each of its outputs keeps
/// the first `limit` bytes. A caller that goes away kills it.
pub(crate) async fn exec_sync(
    inner: &Inner,
    entry: &Entry,
    item: &ContainerEntry,
    args: Vec<String>,
    timeout: Option<Duration>,
    limit: usize,
) -> Result<ExecResult, SandboxError> {
    let spec = ExecSpec {
        args,
        ..ExecSpec::default()
    };
    let work = run(inner, entry, item, &spec, limit);
    let Some(timeout) = timeout else {
        return work.await;
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(SandboxError::ExecTimeout {
            id: item.id.clone(),
            command: spec.args.first().cloned().unwrap_or_default(),
            timeout,
        }),
    }
}

async fn run(
    inner: &Inner,
    entry: &Entry,
    item: &ContainerEntry,
    spec: &ExecSpec,
    limit: usize,
) -> Result<ExecResult, SandboxError> {
    let mut session = exec(inner, entry, item, spec).await?;
    let mut result = ExecResult::default();
    while let Some(output) = session.output.recv().await {
        let (kept, bytes) = match output? {
            ExecOutput::Stdout(bytes) => (&mut result.stdout, bytes),
            ExecOutput::Stderr(bytes) => (&mut result.stderr, bytes),
            ExecOutput::Lost(_) => {
                result.truncated = true;
                continue;
            }
            ExecOutput::Exited(exit) => {
                result.code = exit.code;
                return Ok(result);
            }
        };
        result.truncated |= !keep(kept, &bytes, limit);
    }
    Err(SandboxError::TaskDied(item.id.clone()))
}

/// Adds what fits below `limit`; says whether all of it did.
fn keep(kept: &mut Vec<u8>, bytes: &[u8], limit: usize) -> bool {
    let room = limit.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
    room == bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_its_limit() {
        let mut kept = Vec::new();
        assert!(keep(&mut kept, b"abc", 5));
        assert!(keep(&mut kept, b"de", 5));
        assert!(keep(&mut kept, b"", 5));
        assert!(!keep(&mut kept, b"f", 5));
        assert_eq!(kept, b"abcde");
    }
}
