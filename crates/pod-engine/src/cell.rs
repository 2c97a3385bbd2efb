//! A pod's record in memory and on disk: changed on disk first, then shown to
//! whoever watches the pod.

use crate::error::{EngineError, chain};
use crate::record::{Pod, PodRecord};
use state_store::{StateError, Table};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;

/// One pod's record.
#[derive(Debug)]
pub(crate) struct Cell {
    table: Table<PodRecord>,
    record: Mutex<PodRecord>,
    /// `None` once the pod is forgotten: its watchers' streams end.
    snapshots: Mutex<Option<watch::Sender<Arc<Pod>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cell {
    /// A record that is on the disk.
    pub(crate) fn read(table: Table<PodRecord>, record: PodRecord) -> Self {
        let pod = Arc::new(record.pod.clone());
        Self {
            table,
            record: Mutex::new(record),
            snapshots: Mutex::new(Some(watch::Sender::new(pod))),
        }
    }

    /// Writes a new record.
    pub(crate) fn create(table: Table<PodRecord>, record: PodRecord) -> Result<Self, EngineError> {
        let id = record.pod.id.clone();
        blocking(|| table.put(&id, &record)).map_err(|e| state_error(&id, &e))?;
        Ok(Self::read(table, record))
    }

    /// The record as it is, or was when it was forgotten.
    pub(crate) fn get(&self) -> PodRecord {
        lock(&self.record).clone()
    }

    /// Changes the record: on disk, then in memory. No await: a caller that is
    /// dropped leaves nothing half done. Writes nothing where nothing changed.
    pub(crate) fn update<R>(
        &self,
        change: impl FnOnce(&mut PodRecord) -> R,
    ) -> Result<R, EngineError> {
        let mut record = lock(&self.record);
        let mut next = record.clone();
        let result = change(&mut next);
        if next == *record {
            return Ok(result);
        }
        let snapshots = lock(&self.snapshots);
        let id = &next.pod.id;
        let Some(sender) = snapshots.as_ref() else {
            return Err(EngineError::NoSuchPod(id.clone()));
        };
        blocking(|| self.table.put(id, &next)).map_err(|e| state_error(id, &e))?;
        sender.send_replace(Arc::new(next.pod.clone()));
        *record = next;
        Ok(result)
    }

    /// Removes the record for good and ends its watchers' streams.
    pub(crate) fn forget(&self) -> Result<(), EngineError> {
        let record = lock(&self.record);
        let mut snapshots = lock(&self.snapshots);
        let id = &record.pod.id;
        blocking(|| self.table.remove(id)).map_err(|e| state_error(id, &e))?;
        *snapshots = None;
        Ok(())
    }

    /// The pod, now and after every change.
    pub(crate) fn watch(&self) -> Option<watch::Receiver<Arc<Pod>>> {
        lock(&self.snapshots).as_ref().map(watch::Sender::subscribe)
    }
}

/// The store's error, with the pod it was about.
pub(crate) fn state_error(id: &str, error: &StateError) -> EngineError {
    EngineError::State {
        pod: id.to_owned(),
        message: chain(error),
    }
}

/// Does a short blocking write without holding up the runtime's other tasks.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
