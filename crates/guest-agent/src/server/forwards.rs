//! The event loop's part for port-forward connections.

use super::{Server, Source};
use crate::connection::{ConnectionError, Framed};
use crate::forward::{End, Forward, Progress};
use crate::log;
use rustix::event::epoll::EventFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// All that can be heard of a descriptor, each change once.
const EDGES: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// All port-forward connections.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    open: BTreeMap<u64, Open>,
    next: u64,
    /// Those that had to give way before they were done.
    unfinished: Vec<u64>,
    /// Those that have a deadline.
    dying: BTreeSet<u64>,
}

#[derive(Debug)]
struct Open {
    forward: Forward,
    host: u64,
    /// Of each socket that was tried.
    targets: Vec<u64>,
}

impl Forwards {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// `timeout`, or less where something is due before.
    pub(super) fn limit(&self, timeout: Option<Duration>) -> Option<Duration> {
        let dying = self.dying.iter().filter_map(|id| self.open.get(id));
        let Some(next) = dying.filter_map(|open| open.forward.deadline()).min() else {
            return timeout;
        };
        let left = next.saturating_duration_since(Instant::now());
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }
}

impl Server {
    pub(super) fn add_forward(&mut self, framed: Framed, host: u64) {
        let id = self.forwards.next;
        self.forwards.next += 1;
        self.sources.insert(host, Source::Forward(id, End::Host));
        let open = Open {
            forward: Forward::new(framed),
            host,
            targets: Vec::new(),
        };
        self.forwards.open.insert(id, open);
    }

    pub(super) fn on_forward(&mut self, id: u64, end: End, flags: EventFlags) {
        let Some(open) = self.forwards.open.get_mut(&id) else {
            return;
        };
        if end == End::Host {
            open.forward.host_event(flags);
        }
        self.drive_forward(id);
    }

    pub(super) fn go_on_with_forwards(&mut self) {
        for id in std::mem::take(&mut self.forwards.unfinished) {
            self.drive_forward(id);
        }
        let now = Instant::now();
        for id in std::mem::take(&mut self.forwards.dying) {
            let Some(open) = self.forwards.open.get(&id) else {
                continue;
            };
            if open
                .forward
                .deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                open.forward.on_deadline();
                self.end_forward(id, None);
            } else {
                self.forwards.dying.insert(id);
            }
        }
    }

    fn drive_forward(&mut self, id: u64) {
        while let Some(open) = self.forwards.open.get_mut(&id) {
            match open.forward.advance(&mut self.scratch) {
                Ok(Progress::Wait) => {
                    if open.forward.deadline().is_some() {
                        self.forwards.dying.insert(id);
                    }
                }
                Ok(Progress::Again) => self.forwards.unfinished.push(id),
                Ok(Progress::NewTarget) => {
                    if let Err(e) = self.watch_forward(id) {
                        self.end_forward(id, Some(&e));
                    }
                    continue;
                }
                Ok(Progress::Over) => self.end_forward(id, None),
                Err(e) => self.end_forward(id, Some(&e)),
            }
            return;
        }
    }

    fn watch_forward(&mut self, id: u64) -> Result<(), ConnectionError> {
        let Some(open) = self.forwards.open.get_mut(&id) else {
            return Ok(());
        };
        if let Some(host) = open.forward.host() {
            self.poller.watch(host, open.host, EDGES)?;
        }
        // A socket that connected at once, or the one that is watched already.
        if let Some(target) = open.forward.target() {
            match self.poller.add(target, EDGES) {
                Ok(token) => {
                    self.sources.insert(token, Source::Forward(id, End::Target));
                    open.targets.push(token);
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn end_forward(&mut self, id: u64, why: Option<&ConnectionError>) {
        let Some(open) = self.forwards.open.remove(&id) else {
            return;
        };
        if let Some(why) = why
            && !matches!(why, ConnectionError::Closed)
        {
            log::warn(&format!("a port-forward connection was closed: {why}"));
        }
        self.sources.remove(&open.host);
        for target in &open.targets {
            self.sources.remove(target);
        }
    }
}
