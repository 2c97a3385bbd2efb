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
/// How long a forwarded connection may hold up the others: one whose pod reads is held
/// back by that, and needs no disk.
const PATIENCE: Duration = Duration::from_millis(10);

/// The room of one connection.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) memory: Arc<Semaphore>,
    /// Where waits what memory has no room for.
    spill: Option<SpillShare>,
    /// How long a stream may hold up the connection before it spills.
    pub(crate) patience: Duration,
    /// And where nothing more can be spilled, before one has to go.
    pub(crate) stalled: Duration,
    backlogs: Mutex<Vec<Weak<Backlog>>>,
    /// The last who waited for memory did so in vain.
    pub(crate) hopeless: AtomicBool,
}

impl Room {
    /// For the streams of one command: one that reads when it likes holds its client
    /// back for as long.
    pub(crate) fn of_command(space: Option<&Arc<SpillSpace>>, limits: &Limits) -> Arc<Self> {
        let share = |space| SpillShare::new(Arc::clone(space), limits.spilled_by_command);
        Self::new(space.map(share), limits.unread, Duration::MAX)
    }

    /// For streams that have nothing to do with each other: none holds up another.
    pub(crate) fn of_forward(space: Option<&Arc<SpillSpace>>, limits: &Limits) -> Arc<Self> {
        let share = |space| SpillShare::new(Arc::clone(space), limits.spilled_by_forward);
        Self::new(space.map(share), PATIENCE, limits.stalled)
    }

    fn new(spill: Option<SpillShare>, patience: Duration, stalled: Duration) -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::new(Semaphore::new(MEMORY)),
            spill,
            patience,
            stalled,
            backlogs: Mutex::default(),
            hopeless: AtomicBool::new(false),
        })
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
