//! The event stream: every change of a sandbox's or container's state, in the
//! order it was recorded.

use crate::record::{ContainerState, SandboxState};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::broadcast;

/// Events a slow subscriber may be behind before it is told that it lost some.
const BACKLOG: usize = 1024;

/// A change of state. Carries no more than the state: the rest is in
/// [`crate::Sandboxes::sandbox`] and [`crate::Sandboxes::container`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// 1, 2, 3, ... in the life of this daemon.
    pub seq: u64,
    /// The sandbox concerned.
    pub sandbox_id: String,
    /// What changed.
    pub change: Change,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The sandbox's state.
    Sandbox(SandboxState),
    /// The sandbox is gone.
    SandboxRemoved,
    /// A container's state.
    Container(String, ContainerState),
    /// A container is gone.
    ContainerRemoved(String),
}

/// Hands out events.
#[derive(Debug)]
pub(crate) struct EventHub {
    last: AtomicU64,
    sender: broadcast::Sender<Event>,
}

impl EventHub {
    pub(crate) fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            sender: broadcast::channel(BACKLOG).0,
        }
    }

    /// Announces a change that has been recorded.
    pub(crate) fn announce(&self, sandbox_id: &str, change: Change) {
        let event = Event {
            seq: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            sandbox_id: sandbox_id.to_owned(),
            change,
        };
        // No subscriber is no fault.
        let _ = self.sender.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn subscribers_get_numbered_events_in_order() {
        let hub = EventHub::new();
        let mut events = hub.subscribe();
        hub.announce("a", Change::Sandbox(SandboxState::Creating));
        hub.announce("a", Change::Sandbox(SandboxState::Ready));
        let (first, second) = (events.recv().await.unwrap(), events.recv().await.unwrap());
        assert_eq!((first.seq, second.seq), (1, 2));
        assert_eq!(second.change, Change::Sandbox(SandboxState::Ready));
    }
}
