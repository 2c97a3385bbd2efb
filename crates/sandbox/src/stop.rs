//! Ending a sandbox's VM: the guest is asked first, then its VMM, then the
//! kernel.

use crate::Inner;
use crate::error::{SandboxError, chain};
use crate::live::Live;
use crate::record::SandboxState;
use crate::registry::Entry;
use crate::undo::{Keep, undo_sandbox};
use guest_api::proto::{ShutdownRequest, client_message::Call};
use std::sync::Arc;

/// Ends the VM. Of a sandbox without one: success.
pub(crate) async fn stop(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    entry.recovered().await;
    // Whoever makes the sandbox at this moment gives up and undoes it.
    entry.cancel.send_replace(true);
    let _operation = entry.operation.lock().await;
    stop_locked(inner, entry).await
}

/// [`stop`] for callers that hold the operation lock.
pub(crate) async fn stop_locked(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
) -> Result<(), SandboxError> {
    entry.cancel.send_replace(true);
    if entry.record.read(|s| s.state) == SandboxState::Ready {
        if let Some(live) = entry.live() {
            end_vm(inner, &live).await;
        }
        // The watcher records it.
        entry
            .record
            .wait_for(|s| s.state != SandboxState::Ready)
            .await;
    }
    // Twice: what stands in the way (a plugin that is replaced, a busy device) is
    // often gone a moment later, and not every caller asks again as a kubelet does.
    if let Err(error) = undo_sandbox(inner, entry, Keep::Logs).await {
        tracing::warn!(
            sandbox = entry.id,
            error = chain(&error),
            "not all of an ended VM could be freed; trying once more"
        );
        return undo_sandbox(inner, entry, Keep::Logs).await;
    }
    Ok(())
}

async fn end_vm(inner: &Arc<Inner>, live: &Live) {
    let timeouts = &inner.config.timeouts;
    let ask = async {
        let call = Call::Shutdown(ShutdownRequest {});
        // The answer may be lost; what counts is the end of the process.
        if let Err(error) = live.call("shut down", call, timeouts).await {
            tracing::debug!(%error, "the agent did not answer to its shutdown");
        }
        live.process.exited().await;
    };
    if tokio::time::timeout(timeouts.shutdown, ask).await.is_ok() {
        return;
    }
    let tell = async {
        if let Err(error) = live.vmm.shutdown().await {
            tracing::debug!(%error, "the VMM did not answer to its shutdown");
        }
        live.process.exited().await;
    };
    if tokio::time::timeout(timeouts.vmm_exit, tell).await.is_ok() {
        return;
    }
    live.process.kill_and_wait(timeouts.vmm_exit).await;
}
