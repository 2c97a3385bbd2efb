//! A record in memory and on disk: changed on disk first, then in memory, where
//! others can wait for it.

use crate::error::{SandboxError, chain};
use serde::{Serialize, de::DeserializeOwned};
use state_store::Table;
use tokio::sync::{Mutex, watch};

/// One record of a table.
#[derive(Debug)]
pub(crate) struct Recorded<T> {
    table: Table<T>,
    key: String,
    /// Held over a change, so that changes do not overtake each other. `true`
    /// once the record was forgotten.
    writer: Mutex<bool>,
    value: watch::Sender<T>,
}

impl<T> Recorded<T>
where
    T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    /// A record as it was read, or before its first [`Self::update`].
    pub(crate) fn new(table: Table<T>, key: &str, value: T) -> Self {
        Self {
            table,
            key: key.to_owned(),
            writer: Mutex::new(false),
            value: watch::Sender::new(value),
        }
    }

    /// The record as it is.
    pub(crate) fn get(&self) -> T {
        self.value.borrow().clone()
    }

    /// Part of the record as it is.
    pub(crate) fn read<R>(&self, part: impl FnOnce(&T) -> R) -> R {
        part(&self.value.borrow())
    }

    /// Changes the record; on disk when this returns.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut T)) -> Result<(), SandboxError> {
        self.update_if(|value| {
            change(value);
            true
        })
        .await
        .map(|_| ())
    }

    /// Changes the record unless `change` says no; says whether it did.
    pub(crate) async fn update_if(
        &self,
        change: impl FnOnce(&mut T) -> bool,
    ) -> Result<bool, SandboxError> {
        let forgotten = self.writer.lock().await;
        let mut value = self.get();
        if !change(&mut value) {
            return Ok(false);
        }
        if !*forgotten {
            let (table, key, copy) = (self.table.clone(), self.key.clone(), value.clone());
            self.on_disk(move || table.put(&key, &copy)).await?;
        }
        self.value.send_replace(value);
        Ok(true)
    }

    /// Removes the record from the disk, for good.
    pub(crate) async fn forget(&self) -> Result<(), SandboxError> {
        let mut forgotten = self.writer.lock().await;
        let (table, key) = (self.table.clone(), self.key.clone());
        self.on_disk(move || table.remove(&key).map(|_| ())).await?;
        *forgotten = true;
        Ok(())
    }

    /// Waits until the record is such.
    pub(crate) async fn wait_for(&self, such: impl FnMut(&T) -> bool) {
        let mut receiver = self.value.subscribe();
        // The sender is ours, so it cannot be gone.
        let _ = receiver.wait_for(such).await;
    }

    async fn on_disk(
        &self,
        work: impl FnOnce() -> Result<(), state_store::StateError> + Send + 'static,
    ) -> Result<(), SandboxError> {
        let failed = |message| SandboxError::State {
            id: self.key.clone(),
            message,
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(chain(&error))),
            Err(_) => Err(SandboxError::TaskDied(self.key.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use state_store::StateStore;

    #[tokio::test]
    async fn changes_are_on_disk_and_seen_by_those_who_wait() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::open(&dir.path().join("s.redb")).unwrap();
        let table = store.table::<u32>("numbers", 1);
        let recorded = Recorded::new(table.clone(), "a", 0);
        let (_, changed) =
            tokio::join!(recorded.wait_for(|n| *n == 5), recorded.update(|n| *n = 5));
        changed.unwrap();
        assert_eq!(table.get("a").unwrap(), Some(5));
        recorded.forget().await.unwrap();
        recorded.update(|n| *n = 6).await.unwrap();
        assert_eq!((table.get("a").unwrap(), recorded.get()), (None, 6));
    }
}
