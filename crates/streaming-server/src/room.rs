//! What the input of one connection's streams may take while it waits for its
//! readers, and which stream has to go where that is not enough.

use crate::backlog::{Backlog, Break};
use crate::limits::Limits;
use crate::spill::{SpillShare, SpillSpace};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Most bytes that wait in memory for all streams of a connection.
const MEMORY: usize = 1 << 20;

/// The room of one connection.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) memory: Arc<Semaphore>,
    /// Where waits what memory has no room for. `None`: who does not take holds up all
    /// streams of the connection.
    spill: Option<SpillShare>,
    /// How long the connection may be held up where nothing more can be spilled.
    pub(crate) stalled: Duration,
    backlogs: Mutex<Vec<Weak<Backlog>>>,
    /// The last who waited for memory did so in vain.
    pub(crate) hopeless: AtomicBool,
}

impl Room {
    /// For streams that mean nothing without each other.
    pub(crate) fn of_one_session() -> Arc<Self> {
        Arc::new(Self::with(None, Duration::MAX))
    }

    /// For streams that have nothing to do with each other: none holds up another.
    pub(crate) fn of_many(space: Option<&Arc<SpillSpace>>, limits: &Limits) -> Arc<Self> {
        let share = |space| SpillShare::new(Arc::clone(space), limits.spilled_by_connection);
        Arc::new(Self::with(space.map(share), limits.stalled))
    }

    fn with(spill: Option<SpillShare>, stalled: Duration) -> Self {
        Self {
            memory: Arc::new(Semaphore::new(MEMORY)),
            spill,
            stalled,
            backlogs: Mutex::default(),
            hopeless: AtomicBool::new(false),
        }
    }

    /// That of a new stream.
    pub(crate) fn backlog(&self) -> Arc<Backlog> {
        let backlog = Arc::new(Backlog::new(self.spill.clone()));
        let mut all = self.backlogs();
        all.retain(|backlog| backlog.strong_count() > 0);
        all.push(Arc::downgrade(&backlog));
        drop(all);
        backlog
    }

    /// Breaks the stream for which most waits.
    pub(crate) fn break_fullest(&self) {
        let all = self.backlogs();
        let fullest = all
            .iter()
            .filter_map(Weak::upgrade)
            .max_by_key(|of| of.len());
        if let Some(fullest) = fullest {
            fullest.break_off(Break::Stalled(fullest.len()));
        }
    }

    fn backlogs(&self) -> MutexGuard<'_, Vec<Weak<Backlog>>> {
        self.backlogs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
