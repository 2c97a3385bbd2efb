//! What happened to containers, kept for subscribers that come (back) later.

use guest_api::proto::{ContainerExited, Event, ExitStatus, event::Kind};

/// Events of containers that still exist; at most one for each, so bounded by
/// the number of containers.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    events: Vec<Event>,
    last_seq: u64,
}

impl EventLog {
    /// A container's first process has ended.
    pub(crate) fn exited(&mut self, container_id: &str, exit: ExitStatus) {
        self.last_seq += 1;
        self.events.push(Event {
            seq: self.last_seq,
            kind: Some(Kind::Exited(ContainerExited {
                container_id: container_id.to_owned(),
                exit: Some(exit),
            })),
        });
    }

    /// Drops the events of a container that is removed.
    pub(crate) fn forget(&mut self, container_id: &str) {
        self.events.retain(|event| match &event.kind {
            Some(Kind::Exited(exited)) => exited.container_id != container_id,
            None => false,
        });
    }

    /// Events later than `seq`, in order.
    pub(crate) fn after(&self, seq: u64) -> &[Event] {
        let first = self.events.partition_point(|event| event.seq <= seq);
        &self.events[first..]
    }

    /// Number of the latest event; 0 before the first.
    pub(crate) fn last_seq(&self) -> u64 {
        self.last_seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(events: &[Event]) -> Vec<(u64, &str)> {
        let id = |e: &'_ Event| match e.kind.as_ref().unwrap() {
            Kind::Exited(exited) => exited.container_id.clone(),
        };
        events
            .iter()
            .map(|e| (e.seq, Box::leak(id(e).into_boxed_str()) as &str))
            .collect()
    }

    #[test]
    fn a_late_subscriber_gets_what_it_missed() {
        let mut log = EventLog::default();
        for id in ["a", "b", "c"] {
            log.exited(id, ExitStatus::default());
        }
        assert_eq!(ids(log.after(0)), [(1, "a"), (2, "b"), (3, "c")]);
        assert_eq!(ids(log.after(2)), [(3, "c")]);
        assert!(log.after(3).is_empty() && log.after(u64::MAX).is_empty());
    }

    #[test]
    fn events_of_removed_containers_go_and_numbers_stay() {
        let mut log = EventLog::default();
        log.exited("a", ExitStatus::default());
        log.exited("b", ExitStatus::default());
        log.forget("b");
        assert_eq!(ids(log.after(0)), [(1, "a")]);
        log.exited("c", ExitStatus::default());
        assert_eq!(ids(log.after(1)), [(3, "c")]);
        assert_eq!(log.last_seq(), 3);
    }
}
