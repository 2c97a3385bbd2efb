//! The database file, and transactions over several of its tables.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, Mutex, PoisonError},
};

use redb::{Database, DatabaseError, ReadableDatabase, StorageError, TableError};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    StateError, Table,
    table::{Bytes, definition},
};

/// Memory that redb may use for pages; records are few and small.
const CACHE_BYTES: usize = 8 << 20;

/// The record store of one daemon: a handle to an open, exclusively locked file.
#[derive(Clone)]
pub struct StateStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` after a failure, until it could be opened again.
    db: Mutex<Option<Arc<Database>>>,
    /// An I/O error was seen: redb refuses everything until it is opened anew.
    failed: AtomicBool,
    path: PathBuf,
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateStore")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl StateStore {
    /// Opens the file at `path`, or makes it (mode 0600) and its directories.
    ///
    /// Every page's checksum is verified, so that damage is found here and not
    /// by a record that reads wrong later.
    ///
    /// # Errors
    /// [`StateError::InUse`] while another handle has it open,
    /// [`StateError::Corrupt`] where its content fails the checks.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let io_error = |source: io::Error| StateError::Open {
            path: path.to_owned(),
            source: Box::new(redb::Error::Io(source)),
        };
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(io_error)?;
        // Made here for its mode: redb would make it readable by everyone.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error)?;
        let db = open_database(path)?;
        // The file's name must survive a power cut as its content does.
        File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error)?;
        Ok(Self {
            inner: Arc::new(Inner {
                db: Mutex::new(Some(Arc::new(db))),
                failed: AtomicBool::new(false),
                path: path.to_owned(),
            }),
        })
    }

    /// The open database. After an I/O error (a full disk) it is opened anew, so
    /// that a daemon goes on when the cause has passed. Whoever still uses the old
    /// one holds its lock on the file: then the old one is returned once more, and
    /// says itself that it failed.
    fn database(&self) -> Result<Arc<Database>, StateError> {
        let mut db = self.inner.db.lock().unwrap_or_else(PoisonError::into_inner);
        if self.inner.failed.load(Ordering::Acquire) {
            *db = match db.take().map(Arc::try_unwrap) {
                Some(Err(in_use)) => return Ok(Arc::clone(db.insert(in_use))),
                Some(Ok(old)) => {
                    drop(old);
                    None
                }
                None => None,
            };
            *db = Some(Arc::new(open_database(&self.inner.path)?));
            self.inner.failed.store(false, Ordering::Release);
        }
        let open = db.as_ref().map(Arc::clone);
        open.ok_or_else(|| self.access("go on", redb::Error::PreviousIo))
    }

    /// A handle to the table `name`, whose records this build writes as
    /// `version`. The table comes to exist with its first record.
    pub fn table<T: Serialize + DeserializeOwned>(
        &self,
        name: &'static str,
        version: u32,
    ) -> Table<T> {
        Table::new(self.clone(), name, version)
    }

    /// Runs `body` in one write transaction: all of it is on the disk when this
    /// returns `Ok`, none of it ever was when it returns `Err` or panics.
    ///
    /// # Errors
    /// Whatever `body` returns, or the failure to begin or to commit.
    pub fn transaction<R, E: From<StateError>>(
        &self,
        body: impl FnOnce(&Transaction<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let db = self.database()?;
        let write = db
            .begin_write()
            .map_err(|e| self.access("begin a change", e))?;
        let result = body(&Transaction {
            store: self,
            write: &write,
        })?;
        write
            .commit()
            .map_err(|e| self.access("commit a change", e))?;
        Ok(result)
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `body` over the table's last committed content; `absent` where the
    /// table does not exist yet.
    pub(crate) fn read<R>(
        &self,
        name: &'static str,
        absent: R,
        body: impl FnOnce(redb::ReadOnlyTable<&'static str, Bytes>) -> Result<R, StateError>,
    ) -> Result<R, StateError> {
        const OPERATION: &str = "read a record";
        let db = self.database()?;
        let read = db.begin_read().map_err(|e| self.access(OPERATION, e))?;
        match read.open_table(definition(name)) {
            Ok(table) => body(table),
            Err(TableError::TableDoesNotExist(_)) => Ok(absent),
            Err(error) => Err(self.access(OPERATION, error)),
        }
    }

    pub(crate) fn access(
        &self,
        operation: &'static str,
        source: impl Into<redb::Error>,
    ) -> StateError {
        let path = self.inner.path.clone();
        let source = Box::new(source.into());
        if matches!(*source, redb::Error::Io(_) | redb::Error::PreviousIo) {
            self.inner.failed.store(true, Ordering::Release);
        }
        match *source {
            redb::Error::Corrupted(_) => StateError::Corrupt { path, source },
            _ => StateError::Access {
                operation,
                path,
                source,
            },
        }
    }
}

/// A write transaction in progress; it ends with the closure it was given to.
pub struct Transaction<'a> {
    store: &'a StateStore,
    write: &'a redb::WriteTransaction,
}

impl Transaction<'_> {
    /// The record of that key, with this transaction's own changes seen.
    ///
    /// # Errors
    /// If the file cannot be read or the record does not fit `T`.
    pub fn get<T: Serialize + DeserializeOwned>(
        &self,
        table: &Table<T>,
        key: &str,
    ) -> Result<Option<T>, StateError> {
        table.get_in(&self.open(table)?, key)
    }

    /// All records in the order of their keys, own changes seen.
    ///
    /// # Errors
    /// If the file cannot be read or a record does not fit `T`.
    pub fn list<T: Serialize + DeserializeOwned>(
        &self,
        table: &Table<T>,
    ) -> Result<Vec<(String, T)>, StateError> {
        table.list_in(&self.open(table)?)
    }

    /// Writes or replaces the record of that key.
    ///
    /// # Errors
    /// If the value cannot be expressed as JSON or the file not be written.
    pub fn put<T: Serialize + DeserializeOwned>(
        &self,
        table: &Table<T>,
        key: &str,
        value: &T,
    ) -> Result<(), StateError> {
        let bytes = table.slot(key).encode(value)?;
        self.open(table)?
            .insert(key, bytes.as_slice())
            .map_err(|e| self.store.access("write a record", e))?;
        Ok(())
    }

    /// Removes the record of that key; says whether there was one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn remove<T: Serialize + DeserializeOwned>(
        &self,
        table: &Table<T>,
        key: &str,
    ) -> Result<bool, StateError> {
        let removed = self
            .open(table)?
            .remove(key)
            .map_err(|e| self.store.access("remove a record", e))?
            .is_some();
        Ok(removed)
    }

    fn open<T>(
        &self,
        table: &Table<T>,
    ) -> Result<redb::Table<'_, &'static str, Bytes>, StateError> {
        self.write
            .open_table(definition(table.name()))
            .map_err(|e| self.store.access("open a table", e))
    }
}

fn open_database(path: &Path) -> Result<Database, StateError> {
    redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create(path)
        .map_err(|error| open_error(path, error))
}

fn open_error(path: &Path, error: DatabaseError) -> StateError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StateError::InUse { path }
        }
        DatabaseError::UpgradeRequired(_) => StateError::Format {
            path,
            source: Box::new(error.into()),
        },
        DatabaseError::RepairAborted | DatabaseError::Storage(StorageError::Corrupted(_)) => {
            StateError::Corrupt {
                path,
                source: Box::new(error.into()),
            }
        }
        // A file cut short or overwritten at its head shows as an I/O error.
        DatabaseError::Storage(StorageError::Io(ref io))
            if matches!(
                io.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            StateError::Corrupt {
                path,
                source: Box::new(error.into()),
            }
        }
        error => StateError::Open {
            path,
            source: Box::new(error.into()),
        },
    }
}

#[cfg(test)]
mod tests;
