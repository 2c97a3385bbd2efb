//! Ending a container: its stop signal, a time of grace, SIGKILL. A guest that
//! does not even take the signals is given up after a while; its caller can end
//! the sandbox.

use crate::Inner;
use crate::error::SandboxError;
use crate::live::Live;
use crate::record::ContainerState;
use crate::registry::{ContainerEntry, Entry};
use guest_api::proto::{SignalContainerRequest, client_message::Call};
use std::sync::Arc;
use std::time::Duration;

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// Time for the kernel to end what was killed, drain time not counted.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Ends it; returns when its exit is recorded. Of one that does not run: success.
pub(crate) async fn stop(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
    grace: Duration,
    signal: Option<u32>,
) -> Result<(), SandboxError> {
    let running = |item: &ContainerEntry| item.state() == ContainerState::Running;
    if !running(item) {
        return Ok(());
    }
    let Some(live) = entry.live() else {
        // Its VM has ended; its exit is about to be recorded.
        wait_exited(item, KILL_LIMIT).await;
        return Ok(());
    };
    if !grace.is_zero() {
        let own = item.record.read(|c| c.spec.stop_signal);
        let signal = signal.unwrap_or(if own == 0 { SIGTERM } else { own });
        let limit = grace.min(inner.config.timeouts.control);
        match send(&live, item, signal, false, limit).await {
            Ok(()) if wait_exited(item, grace).await => return Ok(()),
            Ok(()) => {}
            Err(_) if !running(item) => return Ok(()),
            Err(error) => {
                tracing::warn!(container = item.id, %error, "its stop signal could not be sent");
            }
        }
    }
    let killed = send(&live, item, SIGKILL, true, inner.config.timeouts.control).await;
    if matches!(killed, Err(SandboxError::AgentTimeout { .. })) && running(item) {
        return killed;
    }
    let limit = KILL_LIMIT + inner.config.timeouts.drain;
    if wait_exited(item, limit).await {
        return Ok(());
    }
    killed?;
    Err(SandboxError::Guest {
        id: item.id.clone(),
        what: "end the container",
        code: vm_launcher::Code::Internal,
        message: format!("it did not end within {} s after SIGKILL", limit.as_secs()),
    })
}

async fn send(
    live: &Live,
    item: &ContainerEntry,
    signal: u32,
    all: bool,
    limit: Duration,
) -> Result<(), SandboxError> {
    let call = Call::SignalContainer(SignalContainerRequest {
        container_id: item.id.clone(),
        signal,
        all,
    });
    let what = "signal the container";
    live.call_within(what, call, limit).await.map(|_| ())
}

/// Waits for the exit's record; says whether it came.
async fn wait_exited(item: &ContainerEntry, limit: Duration) -> bool {
    let exited = item.record.wait_for(|c| c.state != ContainerState::Running);
    tokio::time::timeout(limit, exited).await.is_ok()
}
