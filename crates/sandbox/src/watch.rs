//! The watcher of one VM: takes the agent's events, makes its connection anew
//! when it breaks, and notices the VM's death. It alone records how containers
//! and VMs end.

use crate::clock::now_ns;
use crate::error::chain;
use crate::guest::printable;
use crate::live::Live;
use crate::record::{ContainerState, Exit, NotReadyReason, SandboxState};
use crate::registry::{ContainerEntry, Entry};
use crate::undo::{Keep, undo_sandbox};
use crate::{Inner, death, guest_clock, run};
use guest_api::proto::{
    self as guest, ContainerExited, ListContainersRequest, SubscribeRequest, client_message::Call,
    container_state::Phase, event, response,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use vm_spec::proto::LogStatus;

/// The agent's events on one connection.
pub(crate) type GuestEvents = mpsc::Receiver<guest::Event>;

/// How long events that were sent before the VM's end are still waited for.
const LAST_EVENTS: Duration = Duration::from_millis(500);
/// Output that nobody adds to for so long is taken as complete.
const SILENCE: Duration = Duration::from_secs(2);
/// When the output is looked at first: most often it is complete by then.
const FIRST_LOOK: Duration = Duration::from_millis(200);
/// Exit code of a container that ended with its VM, as of one killed by SIGKILL.
const CODE_LOST: i32 = 137;

/// Watches a VM until its end. The sender takes the first connection's events;
/// dropped without them, the watcher connects by itself.
pub(crate) fn spawn(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Arc<Live>,
) -> oneshot::Sender<GuestEvents> {
    let (sender, first) = oneshot::channel();
    let (inner, entry, live) = (Arc::clone(inner), Arc::clone(entry), Arc::clone(live));
    tokio::spawn(async move {
        let mut events = None;
        tokio::select! {
            () = serve(&inner, &entry, &live, first, &mut events) => {}
            () = guest_clock::keep(&inner, &entry, &live) => {}
            () = live.process.exited() => {}
        }
        if let Some(mut events) = events {
            last_events(&inner, &entry, &live, &mut events).await;
        }
        on_death(&inner, &entry, &live).await;
    });
    sender
}

/// Adopted VMs have no first connection.
pub(crate) fn spawn_adopted(inner: &Arc<Inner>, entry: &Arc<Entry>, live: &Arc<Live>) {
    drop(spawn(inner, entry, live));
}

/// Serves connection after connection; ends only by being dropped.
async fn serve(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Arc<Live>,
    first: oneshot::Receiver<GuestEvents>,
    current: &mut Option<GuestEvents>,
) {
    *current = first.await.ok();
    loop {
        if current.is_none() {
            match run::knock(&live.paths.vsock()).await {
                Ok((client, events)) => {
                    live.set_guest(Some(Arc::new(client)));
                    *current = Some(events);
                }
                Err(error) => {
                    tracing::error!(sandbox = entry.id, %error, "the agent cannot be talked to");
                    return std::future::pending().await;
                }
            }
        }
        let subscribed = subscribe(inner, entry, live).await;
        if let Some(events) = current.as_mut()
            && subscribed
        {
            while let Some(event) = events.recv().await {
                take(inner, entry, live, event);
            }
        }
        tracing::debug!(sandbox = entry.id, "the agent's connection ended");
        live.set_guest(None);
        *current = None;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks for events since the last one, then compares the containers: the agent
/// forgets old events.
async fn subscribe(inner: &Arc<Inner>, entry: &Arc<Entry>, live: &Arc<Live>) -> bool {
    let after_seq = live.last_event.load(Ordering::Relaxed);
    let timeouts = &inner.config.timeouts;
    let call = Call::Subscribe(SubscribeRequest { after_seq });
    if let Err(error) = live.call("subscribe", call, timeouts).await {
        tracing::warn!(sandbox = entry.id, %error, "no events from the agent");
        return false;
    }
    let call = Call::ListContainers(ListContainersRequest {});
    match live.call("list its containers", call, timeouts).await {
        Ok(response::Result::ListContainers(list)) => {
            reconcile(inner, entry, live, &list.containers).await;
            true
        }
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(sandbox = entry.id, %error, "no list of containers from the agent");
            false
        }
    }
}

/// Brings the records in line with what the agent has.
async fn reconcile(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Arc<Live>,
    known: &[guest::ContainerState],
) {
    for container in entry.containers() {
        let recorded = container.state();
        if !matches!(recorded, ContainerState::Created | ContainerState::Running) {
            continue;
        }
        let state = known
            .iter()
            .find(|state| state.container_id == container.id);
        match state.map(|state| (state.phase(), state)) {
            Some((Phase::Running, state)) if recorded == ContainerState::Created => {
                let (pid, started) = (state.pid, state.started_at_ns);
                // A start in this moment records it, too.
                let _starting = container.starting.lock().await;
                let changed = container
                    .record
                    .update_if(|c| {
                        let created = c.state == ContainerState::Created;
                        if created {
                            c.state = ContainerState::Running;
                            c.pid = pid;
                            // It was while nobody looked: the guest's clock has to do.
                            c.started_at_ns = crate::clock::nanos(started).max(c.created_at_ns);
                            c.start_error = None;
                        }
                        created
                    })
                    .await;
                if matches!(changed, Ok(true)) {
                    inner.announce_container(&entry.id, &container.id, ContainerState::Running);
                }
            }
            Some((Phase::Exited, state)) => {
                let exit = state.exit.unwrap_or_default();
                spawn_ended(inner, entry, live, &container, &exit);
            }
            None if recorded == ContainerState::Running => {
                let exit = lost("the agent in the guest does not know it any more");
                ended(inner, entry, &container, exit).await;
            }
            _ => {}
        }
    }
}

/// Takes one event.
fn take(inner: &Arc<Inner>, entry: &Arc<Entry>, live: &Arc<Live>, event: guest::Event) {
    live.last_event.fetch_max(event.seq, Ordering::Relaxed);
    let Some(event::Kind::Exited(ContainerExited { container_id, exit })) = event.kind else {
        return;
    };
    if let Some(container) = entry.container(&container_id) {
        spawn_ended(inner, entry, live, &container, &exit.unwrap_or_default());
    }
}

/// Records an exit once the container's output is in its log. In a task of its
/// own: one container that holds its output open must not hold up the others.
fn spawn_ended(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Arc<Live>,
    container: &Arc<ContainerEntry>,
    exit: &guest::ExitStatus,
) {
    let exit = from_guest(exit);
    // If the VM ends during the drain, this is still how the container ended.
    container.set_known_exit(exit.clone());
    let (inner, entry) = (Arc::clone(inner), Arc::clone(entry));
    let (live, container) = (Arc::clone(live), Arc::clone(container));
    tokio::spawn(async move {
        let mut exit = exit;
        // Not before the start is recorded.
        drop(container.starting.lock().await);
        exit.start_error = container.record.read(|c| c.start_error.clone());
        if exit.start_error.is_none() && container.state() != ContainerState::Exited {
            exit.log_error = drain(&inner, &live, &container.id).await;
        }
        ended(&inner, &entry, &container, exit).await;
    });
}

/// Waits for the rest of the output; says what is missing. Nobody can tell how
/// much that is where another container of a shared PID namespace has the output
/// open, too: then silence counts as its end.
async fn drain(inner: &Inner, live: &Live, id: &str) -> Option<String> {
    let deadline = Instant::now() + inner.config.timeouts.drain;
    let mut before = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = before.map_or(FIRST_LOOK, |_| SILENCE).min(left);
        let status = match live.vmm.drain_log(id, patience).await {
            Ok(status) => status,
            Err(error) => return Some(error.to_string()),
        };
        match look_at_log(&status, before, left.is_zero()) {
            Drain::GoesOn => before = Some(status.bytes),
            Drain::Complete => return None,
            Drain::Incomplete(why) => return Some(why),
        }
    }
}

/// What a log's state says about the rest of the output.
#[derive(Debug, PartialEq, Eq)]
enum Drain {
    GoesOn,
    Complete,
    Incomplete(String),
}

/// `before`: bytes at the last look, [`SILENCE`] ago. `last`: there will be no other
/// look.
fn look_at_log(status: &LogStatus, before: Option<u64>, last: bool) -> Drain {
    match (status.drained, status.error.is_empty()) {
        (true, true) => Drain::Complete,
        // It was cancelled.
        (true, false) => Drain::Incomplete(printable(&status.error)),
        // What is in the pipes is read as fast as it can be written: silence
        // means that they are empty.
        (false, true) if before == Some(status.bytes) => Drain::Complete,
        // A full disk may have room again in a moment.
        _ if !last => Drain::GoesOn,
        (false, false) => Drain::Incomplete(printable(&status.error)),
        (false, true) => Drain::Incomplete("it was still growing long after the end".to_owned()),
    }
}

fn from_guest(exit: &guest::ExitStatus) -> Exit {
    Exit {
        code: i32::try_from(exit.code & 0xff).unwrap_or(CODE_LOST),
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        lost: None,
        start_error: None,
        log_error: None,
        // The guest's clock is its own: a time of the host's is true.
        finished_at_ns: now_ns(),
    }
}

fn lost(why: impl Into<String>) -> Exit {
    Exit {
        code: CODE_LOST,
        lost: Some(why.into()),
        finished_at_ns: now_ns(),
        ..Exit::default()
    }
}

/// Records an exit, once.
async fn ended(inner: &Inner, entry: &Entry, container: &ContainerEntry, exit: Exit) {
    let changed = container
        .record
        .insist(|record| {
            let open = matches!(
                record.state,
                ContainerState::Created | ContainerState::Running
            );
            if open {
                record.state = ContainerState::Exited;
                record.exit = Some(exit.clone());
            }
            open
        })
        .await;
    if changed {
        inner.announce_container(&entry.id, &container.id, ContainerState::Exited);
    }
}

/// What the agent said before the VM ended, and the output that goes with it.
async fn last_events(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Arc<Live>,
    events: &mut GuestEvents,
) {
    let rest = async {
        while let Some(event) = events.recv().await {
            live.last_event.fetch_max(event.seq, Ordering::Relaxed);
            if let Some(event::Kind::Exited(exited)) = event.kind
                && let Some(container) = entry.container(&exited.container_id)
            {
                // The VMM is gone and has written what it got.
                let exit = from_guest(&exited.exit.unwrap_or_default());
                ended(inner, entry, &container, exit).await;
            }
        }
    };
    let _ = tokio::time::timeout(LAST_EVENTS, rest).await;
}

/// The VM is gone: says so of it and of its containers, frees what it used.
async fn on_death(inner: &Arc<Inner>, entry: &Arc<Entry>, live: &Arc<Live>) {
    let death = death::find(&live.paths);
    live.set_died(death.cause.clone());
    if entry.record.read(|s| s.state) != SandboxState::Ready {
        // Being made or removed: who does that takes care of the rest.
        return;
    }
    let stopped = *entry.cancel.borrow();
    settle(inner, entry, &death.cause, stopped).await;
}

/// Records that a sandbox has no VM any more, then frees what the VM used. Told
/// first: taking a network away may take long.
async fn settle(inner: &Arc<Inner>, entry: &Arc<Entry>, cause: &str, stopped: bool) {
    record_end(inner, entry, cause, stopped).await;
    if stopped {
        // Who stops it frees it, too.
        return;
    }
    let _operation = entry.operation.lock().await;
    if inner.registry.get(&entry.id).is_err() {
        return;
    }
    if let Err(error) = undo_sandbox(inner, entry, Keep::Logs).await {
        tracing::error!(
            sandbox = entry.id,
            error = chain(&error),
            "not all of an ended VM could be freed; stop or remove the sandbox"
        );
    }
}

/// Records and tells that a sandbox's VM is gone, and its containers with it.
pub(crate) async fn record_end(inner: &Arc<Inner>, entry: &Arc<Entry>, cause: &str, stopped: bool) {
    let reason = end_containers(inner, entry, cause, stopped).await;
    entry.set_live(None);
    let changed = entry
        .record
        .insist(|sandbox| {
            let ready = sandbox.state == SandboxState::Ready;
            if ready {
                sandbox.set_state(SandboxState::NotReady, Some(reason.clone()));
            }
            ready
        })
        .await;
    if changed {
        inner.announce_sandbox(&entry.id, SandboxState::NotReady);
    }
}

/// Records that the containers of a VM have ended with it; why the sandbox is not
/// ready any more.
async fn end_containers(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    cause: &str,
    stopped: bool,
) -> NotReadyReason {
    let (reason, why) = if stopped {
        (
            NotReadyReason::Stopped,
            "the sandbox was stopped".to_owned(),
        )
    } else {
        tracing::warn!(
            sandbox = entry.id,
            cause,
            "a virtual machine ended by itself"
        );
        let why = format!("its virtual machine ended: {cause}");
        (NotReadyReason::VmDied(cause.to_owned()), why)
    };
    let told = death::exits(&inner.config.paths(&entry.id));
    for container in entry.containers() {
        let told = || told.get(&container.id).map(from_guest);
        let exit = container.known_exit().or_else(told);
        let exit = exit.unwrap_or_else(|| lost(why.clone()));
        ended(inner, entry, &container, exit).await;
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(drained: bool, error: &str, bytes: u64) -> LogStatus {
        LogStatus {
            container_id: "c".into(),
            drained,
            error: error.into(),
            bytes,
        }
    }

    #[test]
    fn log_is_complete_once_its_streams_end_or_nothing_comes_any_more() {
        assert_eq!(look_at_log(&log(true, "", 5), None, false), Drain::Complete);
        let open = log(false, "", 5);
        assert_eq!(look_at_log(&open, None, false), Drain::GoesOn);
        assert_eq!(look_at_log(&open, Some(4), false), Drain::GoesOn);
        assert_eq!(look_at_log(&open, Some(5), false), Drain::Complete);
    }

    #[test]
    fn log_that_cannot_be_written_is_waited_for_to_the_limit() {
        let full = log(false, "the log file cannot be written: ENOSPC", 5);
        assert_eq!(look_at_log(&full, Some(5), false), Drain::GoesOn);
        let Drain::Incomplete(why) = look_at_log(&full, Some(5), true) else {
            panic!("taken as complete");
        };
        assert!(why.contains("ENOSPC"), "{why}");
        let growing = look_at_log(&log(false, "", 6), Some(5), true);
        assert!(matches!(growing, Drain::Incomplete(_)), "{growing:?}");
    }
}
