//! Starting a container: its log is attached first, so that none of its output
//! is lost however soon it ends.

use crate::Inner;
use crate::clock::{Stopwatch, now_ns};
use crate::error::{SandboxError, chain};
use crate::record::{ContainerState, Step, stages};
use crate::registry::{ContainerEntry, Entry};
use crate::vmm::open_log;
use guest_api::proto::{StartContainerRequest, client_message::Call, response};
use std::sync::Arc;

/// Starts it. Exactly one of several callers does.
pub(crate) async fn start(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    item: &Arc<ContainerEntry>,
) -> Result<(), SandboxError> {
    let _operation = item.operation.lock().await;
    if item.state() != ContainerState::Created {
        return Err(item.wrong_state("Created"));
    }
    let live = entry.require_live()?;
    let (log_path, terminal) = item
        .record
        .read(|c| (c.spec.log_path.clone(), c.spec.process.terminal));

    let clock = Stopwatch::start();
    let log = open_log(&item.id, log_path).await?;
    item.record.update(|c| c.add_step(Step::Log)).await?;
    let attached = live.vmm.attach_log(&item.id, terminal, log).await;
    live.or_death(attached).await?;
    let attached = clock.stage(stages::LOG_ATTACH);

    let clock = Stopwatch::start();
    // From here on an exit waits for the start to be recorded.
    let _starting = item.starting.lock().await;
    let what = "start the container";
    let call = Call::StartContainer(StartContainerRequest {
        container_id: item.id.clone(),
    });
    let answer = match live.call(what, call, &inner.config.timeouts).await {
        Ok(response::Result::StartContainer(answer)) => answer,
        other => {
            let error = other.err().unwrap_or_else(|| live.wrong_answer(what));
            // May be started again, with a log of its own.
            let _ = live.vmm.detach_log(&item.id).await;
            item.record
                .update(|c| {
                    c.steps.retain(|s| *s != Step::Log);
                    c.start_error = Some(chain(&error));
                })
                .await?;
            return Err(error);
        }
    };
    let started = item
        .record
        .update_if(|c| {
            c.stages.push(attached);
            c.stages.push(clock.stage(stages::START));
            c.pid = answer.pid;
            c.started_at_ns = now_ns();
            c.start_error = None;
            // The VM may have ended meanwhile.
            if c.state == ContainerState::Created {
                c.state = ContainerState::Running;
            }
            true
        })
        .await?;
    if started && item.state() == ContainerState::Running {
        inner.announce_container(&entry.id, &item.id, ContainerState::Running);
    }
    Ok(())
}
