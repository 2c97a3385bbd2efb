//! A typed view of one table.

use std::marker::PhantomData;

use redb::{ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};

use crate::{StateError, StateStore, record::Slot};

/// How redb sees a record.
pub(crate) type Bytes = &'static [u8];

/// Turns the JSON of an older record (its version is the first argument) into
/// that of the current version; `None` where it is too old for that.
pub type Upgrade = fn(u32, serde_json::Value) -> Option<serde_json::Value>;

pub(crate) fn definition(name: &'static str) -> TableDefinition<'static, &'static str, Bytes> {
    TableDefinition::new(name)
}

/// Records of type `T` by key. Each call is a transaction of its own; use
/// [`StateStore::transaction`] where several changes belong together.
pub struct Table<T> {
    store: StateStore,
    name: &'static str,
    version: u32,
    upgrade: Option<Upgrade>,
    record: PhantomData<fn() -> T>,
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            ..*self
        }
    }
}

impl<T> std::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl<T> Table<T> {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn slot<'a>(&self, key: &'a str) -> Slot<'a> {
        Slot {
            table: self.name,
            version: self.version,
            upgrade: self.upgrade,
            key,
        }
    }
}

impl<T: Serialize + DeserializeOwned> Table<T> {
    pub(crate) fn new(store: StateStore, name: &'static str, version: u32) -> Self {
        Self {
            store,
            name,
            version,
            upgrade: None,
            record: PhantomData,
        }
    }

    /// The same table, with older records upgraded as they are read (they stay
    /// as they are on disk until written again).
    #[must_use]
    pub fn with_upgrade(mut self, upgrade: Upgrade) -> Self {
        self.upgrade = Some(upgrade);
        self
    }

    /// The record of that key.
    ///
    /// # Errors
    /// If the file cannot be read or the record does not fit `T`.
    pub fn get(&self, key: &str) -> Result<Option<T>, StateError> {
        self.store
            .read(self.name, None, |table| self.get_in(&table, key))
    }

    /// Writes or replaces the record of that key, durably.
    ///
    /// # Errors
    /// If the value cannot be expressed as JSON or the file not be written.
    pub fn put(&self, key: &str, value: &T) -> Result<(), StateError> {
        self.store.transaction(|tx| tx.put(self, key, value))
    }

    /// Removes the record of that key, durably; says whether there was one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn remove(&self, key: &str) -> Result<bool, StateError> {
        self.store.transaction(|tx| tx.remove(self, key))
    }

    /// All records in the order of their keys, as of one moment.
    ///
    /// # Errors
    /// If the file cannot be read or a record does not fit `T`.
    pub fn list(&self) -> Result<Vec<(String, T)>, StateError> {
        self.store
            .read(self.name, Vec::new(), |table| self.list_in(&table))
    }

    pub(crate) fn get_in(
        &self,
        table: &impl ReadableTable<&'static str, Bytes>,
        key: &str,
    ) -> Result<Option<T>, StateError> {
        table
            .get(key)
            .map_err(|e| self.store.access("read a record", e))?
            .map(|bytes| self.slot(key).decode(bytes.value()))
            .transpose()
    }

    pub(crate) fn list_in(
        &self,
        table: &impl ReadableTable<&'static str, Bytes>,
    ) -> Result<Vec<(String, T)>, StateError> {
        let failed = |e| self.store.access("list records", e);
        let mut records = Vec::new();
        for entry in table.iter().map_err(failed)? {
            let (key, bytes) = entry.map_err(failed)?;
            let key = key.value().to_owned();
            let record = self.slot(&key).decode(bytes.value())?;
            records.push((key, record));
        }
        Ok(records)
    }
}
