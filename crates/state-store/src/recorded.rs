//! A record that is kept in memory and on disk: changed on disk first, then in
//! memory, where others can watch it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::watch,
};

use crate::{StateError, Table};

/// One record of a table, in memory and on disk. Those who watch it see its view
/// `V`, the record itself unless said otherwise.
///
/// A change is made by one writer at a time and without an await: a caller that
/// is dropped leaves nothing half done. Readers wait for no write. On tokio's
/// multi-threaded runtime a write holds up no other task.
#[derive(Debug)]
pub struct Recorded<T, V = T> {
    table: Table<T>,
    key: String,
    /// Held over a change, so that changes do not overtake each other. `true`
    /// once the value in memory is on the disk.
    stored: Mutex<bool>,
    value: Mutex<T>,
    view: fn(&T) -> V,
    /// `None` once the record is forgotten: its watchers' streams end.
    views: Mutex<Option<watch::Sender<V>>>,
}

/// Why a record was not changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    /// The record was forgotten; it does not come back by a change.
    #[error("the record {0:?} was removed")]
    Forgotten(String),
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StateError),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Recorded<T>
where
    T: Serialize + DeserializeOwned + Clone + PartialEq,
{
    /// A new record, which the first [`Self::update`] writes, or, with
    /// [`Self::on_disk`], one that was read.
    pub fn new(table: Table<T>, key: &str, value: T) -> Self {
        Self::with_view(table, key, value, T::clone)
    }
}

impl<T, V> Recorded<T, V>
where
    T: Serialize + DeserializeOwned + Clone + PartialEq,
{
    /// As [`Recorded::new`]; those who watch it see what `view` makes of it.
    pub fn with_view(table: Table<T>, key: &str, value: T, view: fn(&T) -> V) -> Self {
        Self {
            table,
            key: key.to_owned(),
            stored: Mutex::new(false),
            views: Mutex::new(Some(watch::Sender::new(view(&value)))),
            view,
            value: Mutex::new(value),
        }
    }

    /// The same record, known to be on the disk as it is.
    #[must_use]
    pub fn on_disk(self) -> Self {
        *lock(&self.stored) = true;
        self
    }

    /// The record as it is, or was when it was forgotten.
    pub fn get(&self) -> T {
        lock(&self.value).clone()
    }

    /// Part of the record as it is. `part` must not change the record.
    pub fn read<R>(&self, part: impl FnOnce(&T) -> R) -> R {
        part(&lock(&self.value))
    }

    /// Changes the record: on disk, then in memory, then for those who watch it.
    /// A record that is on the disk already is not written where `change` changes
    /// nothing. Blocks for the write; `change` must not use the record itself.
    ///
    /// # Errors
    /// If it was forgotten or the file cannot be written; then it is as before.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, RecordedError> {
        blocking(|| {
            let mut stored = lock(&self.stored);
            let before = self.get();
            let mut next = before.clone();
            let result = change(&mut next);
            if *stored && next == before {
                return Ok(result);
            }
            if lock(&self.views).is_none() {
                return Err(RecordedError::Forgotten(self.key.clone()));
            }
            self.table.put(&self.key, &next)?;
            *stored = true;
            let view = (self.view)(&next);
            *lock(&self.value) = next;
            if let Some(views) = lock(&self.views).as_ref() {
                views.send_replace(view);
            }
            Ok(result)
        })
    }

    /// Removes the record for good and ends its watchers' streams.
    ///
    /// # Errors
    /// If the file cannot be written; then it is as before.
    pub fn forget(&self) -> Result<(), StateError> {
        blocking(|| {
            let _stored = lock(&self.stored);
            self.table.remove(&self.key)?;
            *lock(&self.views) = None;
            Ok(())
        })
    }

    /// Its view, now and after every change, until it is forgotten; `None` if it
    /// was.
    pub fn watch(&self) -> Option<watch::Receiver<V>> {
        lock(&self.views).as_ref().map(watch::Sender::subscribe)
    }

    /// Waits until the view is such, or the record is forgotten.
    pub async fn wait_for(&self, such: impl FnMut(&V) -> bool) {
        if let Some(mut views) = self.watch() {
            // An error is the end of the record.
            let _ = views.wait_for(such).await;
        }
    }
}

/// Does a short blocking write without holding up the runtime's other tasks.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StateStore;

    fn table() -> (tempfile::TempDir, Table<u32>) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = StateStore::open(&dir.path().join("s.redb")).expect("opens");
        (dir, store.table("numbers", 1))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_are_on_disk_and_seen_by_those_who_wait() {
        let (_dir, table) = table();
        let recorded = Recorded::new(table.clone(), "a", 0);
        let (seen, changed) = tokio::join!(recorded.wait_for(|n| *n == 5), async {
            recorded.update(|n| *n = 5)
        });
        changed.expect("written");
        assert_eq!(seen, ());
        assert_eq!(table.get("a").expect("reads"), Some(5));
        assert_eq!(recorded.get(), 5);
    }

    #[test]
    fn first_update_writes_a_new_record_and_no_change_writes_no_old_one() {
        let (_dir, table) = table();
        let old = Recorded::new(table.clone(), "old", 7).on_disk();
        assert_eq!(old.update(|n| *n).expect("nothing to do"), 7);
        assert_eq!(table.get("old").expect("reads"), None);
        let new = Recorded::new(table.clone(), "new", 7);
        new.update(|_| ()).expect("written");
        assert_eq!(table.get("new").expect("reads"), Some(7));
    }

    #[tokio::test]
    async fn forgotten_record_ends_its_watchers_and_does_not_come_back() {
        let (_dir, table) = table();
        let recorded = Recorded::with_view(table.clone(), "a", 1, |n| n.to_string());
        let mut watch = recorded.watch().expect("not forgotten");
        recorded.update(|n| *n = 2).expect("written");
        assert_eq!(*watch.borrow_and_update(), "2");
        recorded.forget().expect("removed");
        assert!(watch.changed().await.is_err());
        recorded.wait_for(|_| false).await;
        let error = recorded.update(|n| *n = 3).expect_err("forgotten");
        assert!(matches!(error, RecordedError::Forgotten(_)), "{error}");
        assert_eq!((table.get("a").expect("reads"), recorded.get()), (None, 2));
    }

    #[test]
    fn changes_by_many_threads_are_all_kept() {
        let (_dir, table) = table();
        let recorded = Recorded::new(table.clone(), "a", 0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| recorded.update(|n| *n += 1).expect("written"));
            }
        });
        assert_eq!(recorded.get(), 8);
        assert_eq!(table.get("a").expect("reads"), Some(8));
    }
}
