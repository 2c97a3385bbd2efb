//! Records as this crate's calls use them: `state_store`'s, with this crate's
//! errors.

use crate::error::{SandboxError, chain};
use serde::{Serialize, de::DeserializeOwned};
use state_store::{RecordedError, StateError, Table};
use std::time::Duration;

/// How long what could not be recorded waits.
const RETRY: Duration = Duration::from_secs(2);

/// One record of a table.
#[derive(Debug)]
pub(crate) struct Recorded<T> {
    id: String,
    record: state_store::Recorded<T>,
}

impl<T> Recorded<T>
where
    T: Serialize + DeserializeOwned + Clone + PartialEq,
{
    /// A record as it was read, or before its first [`Self::update`].
    pub(crate) fn new(table: Table<T>, id: &str, value: T) -> Self {
        Self {
            id: id.to_owned(),
            record: state_store::Recorded::new(table, id, value),
        }
    }

    /// The record as it is.
    pub(crate) fn get(&self) -> T {
        self.record.get()
    }

    /// Part of the record as it is.
    pub(crate) fn read<R>(&self, part: impl FnOnce(&T) -> R) -> R {
        self.record.read(part)
    }

    /// Changes the record; on disk when this returns. Never half done: there is
    /// no await in it.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut T)) -> Result<(), SandboxError> {
        self.record
            .update(change)
            .map_err(|error| self.failed(&error))
    }

    /// Changes the record unless `change` says no, and then has changed nothing;
    /// says whether it did.
    pub(crate) async fn update_if(
        &self,
        change: impl FnOnce(&mut T) -> bool,
    ) -> Result<bool, SandboxError> {
        self.record
            .update(change)
            .map_err(|error| self.failed(&error))
    }

    /// As [`Self::update_if`] for what has happened and cannot be refused: where it
    /// cannot be written (a full disk), it is tried until it can be. `false`, too,
    /// once the record is forgotten.
    pub(crate) async fn insist(&self, mut change: impl FnMut(&mut T) -> bool) -> bool {
        loop {
            match self.record.update(&mut change) {
                Ok(changed) => return changed,
                Err(RecordedError::Forgotten(_)) => return false,
                Err(error) => tracing::error!(
                    record = self.id,
                    error = chain(&error),
                    "what happened could not be recorded; trying again"
                ),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Removes the record from the disk, for good.
    pub(crate) async fn forget(&self) -> Result<(), SandboxError> {
        let removed: Result<(), StateError> = self.record.forget();
        removed.map_err(|error| self.failed(&error))
    }

    /// Waits until the record is such, or gone.
    pub(crate) async fn wait_for(&self, such: impl FnMut(&T) -> bool) {
        self.record.wait_for(such).await;
    }

    fn failed(&self, error: &dyn std::error::Error) -> SandboxError {
        SandboxError::State {
            id: self.id.clone(),
            message: chain(error),
        }
    }
}
