//! The objects of this node: in memory and on disk.

use super::ObjectError;
use super::plan::{self, Applied};
use super::types::{
    ConfigMap, Kind, Object, ObjectKey, PersistentVolume, PersistentVolumeClaim, Secret,
};
use crate::engine::now_ns;
use crate::error::{EngineError, chain};
use serde::{Deserialize, Serialize};
use state_store::{StateError, StateStore, Table, Transaction};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Version of the records' layout.
const RECORD_VERSION: u32 = 1;

/// An object in the state store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stored {
    uid: String,
    /// Grows with every change of any object.
    version: u64,
    created_at_ns: i64,
    object: Object,
}

/// What lists show of an object: of its data the keys alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSummary {
    /// Its name.
    pub key: ObjectKey,
    /// Its unique id.
    pub uid: String,
    /// Grows with every change of any object.
    pub version: u64,
    /// When it was made, in nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// From the manifest.
    pub labels: BTreeMap<String, String>,
    /// It is not to be changed any more.
    pub immutable: bool,
    /// The keys of its data, and the bytes of each.
    pub data: Vec<(String, usize)>,
    /// Of a claim: its PersistentVolume; empty while there is none.
    pub volume: String,
}

/// All objects. A change is on disk before it is seen.
#[derive(Debug)]
pub(crate) struct Objects {
    state: StateStore,
    tables: [(Kind, Table<Stored>); 4],
    held: Mutex<BTreeMap<ObjectKey, Arc<Stored>>>,
    version: watch::Sender<u64>,
}

impl Objects {
    /// Reads the records.
    pub(crate) fn open(state: &StateStore) -> Result<Self, EngineError> {
        let table = |kind| state.table::<Stored>(table_name(kind), RECORD_VERSION);
        let tables = Kind::ALL.map(|kind| (kind, table(kind)));
        let mut held = BTreeMap::new();
        for (_, table) in &tables {
            for (_, stored) in table.list().map_err(|e| failed("(all)", &e))? {
                held.insert(stored.object.key(), Arc::new(stored));
            }
        }
        let version = held.values().map(|stored| stored.version).max();
        Ok(Self {
            state: state.clone(),
            tables,
            held: Mutex::new(held),
            version: watch::Sender::new(version.unwrap_or(0)),
        })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Arc<Stored>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self, kind: Kind) -> &Table<Stored> {
        let [(_, first), ..] = &self.tables;
        let found = self.tables.iter().find(|(of, _)| *of == kind);
        found.map_or(first, |(_, table)| table)
    }

    /// Keeps all of `given`, or none. Blocks.
    pub(crate) fn apply(&self, given: Vec<Object>) -> Result<Vec<Applied>, EngineError> {
        let mut held = self.held();
        let before = held
            .iter()
            .map(|(k, v)| (k.clone(), v.object.clone()))
            .collect();
        let plan = plan::plan(before, given)?;
        if plan.writes.is_empty() {
            return Ok(plan.applied);
        }
        let version = *self.version.borrow() + 1;
        let records: Vec<(ObjectKey, Stored)> = plan
            .writes
            .into_iter()
            .map(|(key, object)| {
                let old = held.get(&key);
                let given = &object.metadata().uid;
                let uid = match old {
                    Some(old) => old.uid.clone(),
                    None if given.is_empty() => crate::engine::uuid(&sandbox::new_id()),
                    None => given.clone(),
                };
                let created_at_ns = old.map_or_else(now_ns, |old| old.created_at_ns);
                let stored = Stored {
                    uid,
                    version,
                    created_at_ns,
                    object,
                };
                (key, stored)
            })
            .collect();
        let write = |tx: &Transaction<'_>| {
            records
                .iter()
                .try_for_each(|(key, stored)| tx.put(self.table(key.kind), &key.record(), stored))
        };
        self.state
            .transaction(write)
            .map_err(|e| failed("(several)", &e))?;
        held.extend(
            records
                .into_iter()
                .map(|(key, stored)| (key, Arc::new(stored))),
        );
        self.version.send_replace(version);
        Ok(plan.applied)
    }

    /// Forgets an object; says whether there was one. Blocks.
    pub(crate) fn delete(&self, key: &ObjectKey) -> Result<bool, EngineError> {
        let mut held = self.held();
        if !held.contains_key(key) {
            return Ok(false);
        }
        if key.kind == Kind::PersistentVolume {
            let claim = held.values().find(|stored| match &stored.object {
                Object::PersistentVolumeClaim(claim) => claim.spec.volume_name == key.name,
                _ => false,
            });
            if let Some(claim) = claim {
                return Err(EngineError::Object(ObjectError::InUse {
                    object: key.to_string(),
                    user: claim.object.key().to_string(),
                }));
            }
        }
        let removed = self.table(key.kind).remove(&key.record());
        removed.map_err(|e| failed(&key.to_string(), &e))?;
        held.remove(key);
        self.version.send_modify(|version| *version += 1);
        Ok(true)
    }

    /// All of them, by kind, namespace and name.
    pub(crate) fn list(&self) -> Vec<ObjectSummary> {
        let held = self.held();
        held.iter()
            .map(|(key, stored)| summary(key, stored))
            .collect()
    }

    /// Counts changes: it may have been more than one that is seen.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn get<T>(&self, key: &ObjectKey, of: fn(&Object) -> Option<&T>) -> Option<T>
    where
        T: Clone,
    {
        let stored = self.held().get(key).cloned()?;
        of(&stored.object).cloned()
    }

    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap> {
        self.get(
            &ObjectKey::new(Kind::ConfigMap, namespace, name),
            |object| match object {
                Object::ConfigMap(map) => Some(map),
                _ => None,
            },
        )
    }

    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        self.get(
            &ObjectKey::new(Kind::Secret, namespace, name),
            |object| match object {
                Object::Secret(secret) => Some(secret),
                _ => None,
            },
        )
    }

    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim> {
        let key = ObjectKey::new(Kind::PersistentVolumeClaim, namespace, name);
        self.get(&key, |object| match object {
            Object::PersistentVolumeClaim(claim) => Some(claim),
            _ => None,
        })
    }

    pub(crate) fn volume(&self, name: &str) -> Option<PersistentVolume> {
        let key = ObjectKey::new(Kind::PersistentVolume, "", name);
        self.get(&key, |object| match object {
            Object::PersistentVolume(volume) => Some(volume),
            _ => None,
        })
    }
}

fn table_name(kind: Kind) -> &'static str {
    match kind {
        Kind::ConfigMap => "config-maps",
        Kind::Secret => "secrets",
        Kind::PersistentVolume => "persistent-volumes",
        Kind::PersistentVolumeClaim => "persistent-volume-claims",
    }
}

fn summary(key: &ObjectKey, stored: &Stored) -> ObjectSummary {
    let object = &stored.object;
    ObjectSummary {
        key: key.clone(),
        uid: stored.uid.clone(),
        version: stored.version,
        created_at_ns: stored.created_at_ns,
        labels: object.metadata().labels.clone(),
        immutable: object.is_immutable(),
        data: object.data_sizes(),
        volume: match object {
            Object::PersistentVolumeClaim(claim) => claim.spec.volume_name.clone(),
            _ => String::new(),
        },
    }
}

fn failed(object: &str, error: &StateError) -> EngineError {
    EngineError::ObjectState {
        object: object.to_owned(),
        message: chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(kind: Kind, rest: serde_json::Value) -> Object {
        let mut errors = Vec::new();
        let object = super::super::read(kind, &rest, &mut errors);
        object.unwrap_or_else(|| panic!("{errors:?}"))
    }

    fn map(value: &str) -> Object {
        object(
            Kind::ConfigMap,
            json!({"metadata": {"name": "m"}, "data": {"k": value}}),
        )
    }

    #[test]
    fn objects_and_their_versions_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let before = {
            let objects = Objects::open(&StateStore::open(&path).unwrap()).unwrap();
            let mut seen = objects.watch();
            objects.apply(vec![map("1")]).unwrap();
            assert!(seen.has_changed().unwrap());
            seen.mark_unchanged();
            objects.apply(vec![map("1")]).unwrap();
            assert!(!seen.has_changed().unwrap());
            objects.apply(vec![map("2")]).unwrap();
            objects.list()
        };
        let objects = Objects::open(&StateStore::open(&path).unwrap()).unwrap();
        assert_eq!(objects.list(), before);
        assert_eq!(objects.list()[0].version, 2);
        assert_eq!(objects.config_map("default", "m").unwrap().data["k"], "2");
        let key = before[0].key.clone();
        assert!(objects.delete(&key).unwrap());
        assert!(!objects.delete(&key).unwrap());
        assert_eq!(objects.list(), []);
    }

    #[test]
    fn a_claimed_volume_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
        let objects = Objects::open(&state).unwrap();
        let volume = object(
            Kind::PersistentVolume,
            json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"], "local": {"path": "/srv"}}}),
        );
        let claim = object(
            Kind::PersistentVolumeClaim,
            json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}),
        );
        // The claim is there first, and bound when the volume comes.
        objects.apply(vec![claim.clone()]).unwrap();
        assert_eq!(objects.claim("default", "c").unwrap().spec.volume_name, "");
        objects.apply(vec![volume.clone()]).unwrap();
        assert_eq!(objects.claim("default", "c").unwrap().spec.volume_name, "v");
        // Given again as it was written: nothing changes.
        objects.apply(vec![claim.clone()]).unwrap();
        assert_eq!(objects.claim("default", "c").unwrap().spec.volume_name, "v");
        assert!(matches!(
            objects.delete(&volume.key()),
            Err(EngineError::Object(ObjectError::InUse { .. }))
        ));
        assert!(objects.delete(&claim.key()).unwrap());
        assert!(objects.delete(&volume.key()).unwrap());
    }
}
