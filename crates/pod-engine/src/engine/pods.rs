//! The pods of a daemon, by id and by name.

use super::Config;
use crate::error::{EngineError, chain};
use crate::facts::Facts;
use crate::manifest::{Manifest, NodeLimits};
use crate::objects::Objects;
use crate::record::{Pod, PodRecord, Wanted};
use crate::sizing::{self, VmSize};
use crate::volumes::{Allowed, Volumes};
use image_store::ImageStore;
use sandbox::Sandboxes;
use state_store::{Recorded, RecordedError, StateError, Table};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) images: ImageStore,
    pub(crate) objects: Objects,
    pub(crate) volumes: Volumes,
    pub(super) table: Table<PodRecord>,
    pods: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Memory in MiB that a pod's VM can have.
    pub(crate) most_mib: u64,
}

/// A pod's record; who watches it sees the pod.
pub(crate) type PodRecorded = Recorded<PodRecord, Arc<Pod>>;

/// A pod and what belongs to it while this daemon lives.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) manifest: Manifest,
    pub(crate) record: PodRecorded,
    pub(crate) size: VmSize,
    /// Size in MiB of its scratch disk.
    pub(crate) scratch_mib: u64,
    /// What is wanted of the pod; its task follows it.
    pub(crate) wanted: watch::Sender<Wanted>,
    pub(crate) log_dir: PathBuf,
    /// Held by who changes the pod's volumes on the host.
    pub(crate) volumes: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn new(
        config: Config,
        sandboxes: Sandboxes,
        images: ImageStore,
        objects: Objects,
        table: Table<PodRecord>,
        most_mib: u64,
    ) -> Self {
        let allowed = Allowed::new(&config.allow_host_paths);
        Self {
            objects,
            volumes: Volumes::new(&sandboxes.config().run, allowed),
            config,
            sandboxes,
            images,
            table,
            pods: Mutex::default(),
            most_mib,
        }
    }

    /// What a manifest is checked against.
    pub(super) fn limits(&self) -> NodeLimits {
        NodeLimits {
            memory_mib: self.most_mib,
            network: self.config.network,
        }
    }

    /// All pods, by id.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.pods).values().cloned().collect()
    }

    /// Forgets a pod of which nothing is left.
    pub(crate) fn forget(&self, entry: &Entry) -> Result<(), EngineError> {
        // First from the list: nobody finds a pod whose watch has ended.
        lock(&self.pods).remove(&entry.id);
        let forgotten = entry.record.forget();
        forgotten.map_err(|error| state_error(&entry.id, &error))
    }

    pub(super) fn find(&self, name: &str) -> Result<Arc<Entry>, EngineError> {
        let pods = lock(&self.pods);
        if let Some(entry) = pods.get(name) {
            return Ok(Arc::clone(entry));
        }
        let (namespace, pod_name) = name.split_once('/').unwrap_or(("default", name));
        let named = pods.values().find(|entry| {
            entry
                .record
                .read(|record| record.pod.name == pod_name && record.pod.namespace == namespace)
        });
        if let Some(entry) = named {
            return Ok(Arc::clone(entry));
        }
        let digits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit());
        let mut matches = pods.values().filter(|e| digits && e.id.starts_with(name));
        match (matches.next(), matches.count()) {
            (Some(entry), 0) => Ok(Arc::clone(entry)),
            (Some(_), more) => Err(EngineError::Ambiguous {
                prefix: name.to_owned(),
                count: more + 1,
            }),
            (None, _) => Err(EngineError::NoSuchPod(name.to_owned())),
        }
    }

    /// Adds a pod that was read from the records.
    pub(super) fn add_known(&self, record: PodRecord, manifest: Manifest, size: VmSize) {
        let entry = self.entry(record, manifest, size, Recorded::on_disk);
        lock(&self.pods).insert(entry.id.clone(), Arc::new(entry));
    }

    fn entry(
        &self,
        record: PodRecord,
        manifest: Manifest,
        size: VmSize,
        known: fn(PodRecorded) -> PodRecorded,
    ) -> Entry {
        let id = record.pod.id.clone();
        let default_mib = self.sandboxes.config().scratch_mib;
        Entry {
            scratch_mib: sizing::scratch_mib(&manifest, default_mib).unwrap_or(default_mib),
            log_dir: self.config.root.join("logs").join(&id),
            volumes: Mutex::default(),
            manifest,
            size,
            wanted: watch::Sender::new(record.wanted),
            record: known(Recorded::with_view(
                self.table.clone(),
                &id,
                record,
                |record| Arc::new(record.pod.clone()),
            )),
            id,
        }
    }

    /// Refuses a pod whose name is taken at the moment.
    pub(super) fn check_name(&self, record: &PodRecord) -> Result<(), EngineError> {
        name_is_free(&lock(&self.pods), record)
    }

    /// Records a new pod under a name that is free.
    pub(super) fn add(
        &self,
        record: PodRecord,
        manifest: Manifest,
        size: VmSize,
    ) -> Result<Arc<Entry>, EngineError> {
        let mut pods = lock(&self.pods);
        if pods.len() >= self.config.max_pods {
            return Err(EngineError::TooManyPods(pods.len()));
        }
        name_is_free(&pods, &record)?;
        let entry = Arc::new(self.entry(record, manifest, size, |new| new));
        entry.update(|_| ())?;
        pods.insert(entry.id.clone(), Arc::clone(&entry));
        Ok(entry)
    }
}

impl Entry {
    /// Changes the record: on disk, then in memory. No await: a caller that is
    /// dropped leaves nothing half done.
    pub(crate) fn update<R>(
        &self,
        change: impl FnOnce(&mut PodRecord) -> R,
    ) -> Result<R, EngineError> {
        self.record.update(change).map_err(|error| match error {
            RecordedError::Forgotten(id) => EngineError::NoSuchPod(id),
            RecordedError::Store(error) => state_error(&self.id, &error),
        })
    }

    /// What its containers may be told of it.
    pub(crate) fn facts<'a>(&'a self, pod: &'a Pod) -> Facts<'a> {
        Facts {
            pod,
            manifest: &self.manifest,
            size: self.size,
            scratch_mib: self.scratch_mib,
        }
    }

    /// It is over, or is to be removed: nothing new is made for it.
    pub(crate) fn is_ending(&self) -> bool {
        *self.wanted.borrow() == Wanted::Remove
            || self.record.read(|record| record.pod.phase).is_final()
    }

    /// The pod as it is.
    pub(crate) fn pod(&self) -> Pod {
        self.record.read(|record| record.pod.clone())
    }
}

fn name_is_free(
    pods: &BTreeMap<String, Arc<Entry>>,
    record: &PodRecord,
) -> Result<(), EngineError> {
    let (namespace, name) = (&record.pod.namespace, &record.pod.name);
    let taken = pods.values().find(|entry| {
        entry
            .record
            .read(|other| other.pod.name == *name && other.pod.namespace == *namespace)
    });
    match taken {
        None => Ok(()),
        Some(other) => Err(EngineError::NameTaken {
            namespace: namespace.clone(),
            name: name.clone(),
            id: other.id.clone(),
        }),
    }
}

/// The store's error, with the pod it was about.
pub(super) fn state_error(id: &str, error: &StateError) -> EngineError {
    EngineError::State {
        pod: id.to_owned(),
        message: chain(error),
    }
}

/// Removes a directory; a missing one is no fault.
pub(crate) fn remove_dir(path: &Path) -> Result<(), EngineError> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(EngineError::Files {
            path: path.display().to_string(),
            source,
        }),
        _ => Ok(()),
    }
}
