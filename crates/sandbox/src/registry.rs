//! The sandboxes and containers of this daemon, by id and by name.
//!
//! Locks, in this order: `Sandboxes::registry` (never held over an await),
//! [`Entry::operation`], [`ContainerEntry::operation`], [`Entry::images`], [`Entry::shares`],
//! [`Entry::volumes`], [`ContainerEntry::starting`]. The record's own lock comes last.

use crate::error::SandboxError;
use crate::live::Live;
use crate::record::{Container, ContainerState, Exit, NotReadyReason, Sandbox, SandboxState};
use crate::recorded::Recorded;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use vm_spec::proto::Extent;

/// A sandbox and what belongs to it while this daemon lives.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) record: Recorded<Sandbox>,
    /// Held while the sandbox is made, stopped or removed.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// `true` once a stop or removal was asked for: what makes the sandbox gives up.
    pub(crate) cancel: watch::Sender<bool>,
    /// Held while the sandbox's limits are changed.
    pub(crate) updating: tokio::sync::Mutex<()>,
    containers: Mutex<BTreeMap<String, Arc<ContainerEntry>>>,
    /// Images in the VM, by id.
    pub(crate) images: tokio::sync::Mutex<HashMap<String, Extent>>,
    /// Shares in the VM: whether each is read-only.
    pub(crate) shares: tokio::sync::Mutex<HashMap<String, bool>>,
    /// Held while a block volume is attached, changed or detached.
    pub(crate) volumes: tokio::sync::Mutex<()>,
    live: Mutex<Option<Arc<Live>>>,
    /// `true` while the daemon's start finds out whether its VM lives.
    recovering: watch::Sender<bool>,
}

/// Calls that need a sandbox's VM wait while this is there.
#[derive(Debug)]
pub(crate) struct Recovering(Arc<Entry>);

impl Recovering {
    pub(crate) fn begin(entry: &Arc<Entry>) -> Self {
        entry.recovering.send_replace(true);
        Self(Arc::clone(entry))
    }
}

impl Drop for Recovering {
    fn drop(&mut self) {
        self.0.recovering.send_replace(false);
    }
}

/// A container and what belongs to it while this daemon lives.
#[derive(Debug)]
pub(crate) struct ContainerEntry {
    pub(crate) id: String,
    pub(crate) record: Recorded<Container>,
    /// Held while the container is made, started or removed.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Held while the start is recorded, so that an exit is recorded after it.
    pub(crate) starting: tokio::sync::Mutex<()>,
    /// Held while its limits are changed.
    pub(crate) updating: tokio::sync::Mutex<()>,
    /// Its exit as the agent told it, while the rest of its output is awaited.
    known_exit: Mutex<Option<Exit>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is changed by single insertions and removals.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub(crate) fn new(record: Recorded<Sandbox>) -> Self {
        let id = record.read(|s| s.spec.id.clone());
        Self {
            id,
            record,
            operation: tokio::sync::Mutex::new(()),
            cancel: watch::Sender::new(false),
            updating: tokio::sync::Mutex::new(()),
            containers: Mutex::default(),
            images: tokio::sync::Mutex::default(),
            shares: tokio::sync::Mutex::default(),
            volumes: tokio::sync::Mutex::new(()),
            live: Mutex::default(),
            recovering: watch::Sender::new(false),
        }
    }

    /// Waits until the daemon's start knows what became of its VM.
    pub(crate) async fn recovered(&self) {
        let mut recovering = self.recovering.subscribe();
        // Never an error: the sender is ours.
        let _ = recovering.wait_for(|recovering| !recovering).await;
    }

    /// [`Self::recovered`], for at most `limit`.
    pub(crate) async fn recovered_within(&self, limit: Duration) -> Result<(), SandboxError> {
        let recovered = tokio::time::timeout(limit, self.recovered()).await;
        recovered.map_err(|_| SandboxError::Recovering {
            id: self.id.clone(),
            seconds: limit.as_secs(),
        })
    }

    /// Its VM, while it has one.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        lock(&self.live).clone()
    }

    pub(crate) fn set_live(&self, live: Option<Arc<Live>>) {
        *lock(&self.live) = live;
    }

    /// Its VM, or why it has none.
    pub(crate) fn require_live(&self) -> Result<Arc<Live>, SandboxError> {
        self.live().ok_or_else(|| {
            self.record.read(|sandbox| match &sandbox.reason {
                Some(NotReadyReason::VmDied(cause)) => SandboxError::VmDied {
                    id: self.id.clone(),
                    cause: cause.clone(),
                },
                _ => self.wrong_state(sandbox.state, "Ready"),
            })
        })
    }

    pub(crate) fn wrong_state(&self, state: SandboxState, wanted: &'static str) -> SandboxError {
        SandboxError::WrongState {
            id: self.id.clone(),
            state: format!("{state:?}"),
            wanted,
        }
    }

    /// Its containers, by id.
    pub(crate) fn containers(&self) -> Vec<Arc<ContainerEntry>> {
        lock(&self.containers).values().cloned().collect()
    }

    pub(crate) fn container(&self, id: &str) -> Option<Arc<ContainerEntry>> {
        lock(&self.containers).get(id).cloned()
    }

    /// Adds a container unless one has its name and attempt: then that one's id
    /// is the error.
    pub(crate) fn add_container(&self, container: Arc<ContainerEntry>) -> Result<(), String> {
        let mut containers = lock(&self.containers);
        let key = |c: &ContainerEntry| c.record.read(|r| (r.spec.name.clone(), r.spec.attempt));
        let wanted = key(&container);
        if let Some(other) = containers.values().find(|c| key(c) == wanted) {
            return Err(other.id.clone());
        }
        containers.insert(container.id.clone(), container);
        Ok(())
    }

    pub(crate) fn drop_container(&self, id: &str) {
        lock(&self.containers).remove(id);
    }
}

impl ContainerEntry {
    pub(crate) fn new(record: Recorded<Container>) -> Self {
        Self {
            id: record.read(|c| c.id.clone()),
            record,
            operation: tokio::sync::Mutex::new(()),
            starting: tokio::sync::Mutex::new(()),
            updating: tokio::sync::Mutex::new(()),
            known_exit: Mutex::new(None),
        }
    }

    /// The exit that the agent told, if it has.
    pub(crate) fn known_exit(&self) -> Option<Exit> {
        lock(&self.known_exit).clone()
    }

    pub(crate) fn set_known_exit(&self, exit: Exit) {
        *lock(&self.known_exit) = Some(exit);
    }

    pub(crate) fn state(&self) -> ContainerState {
        self.record.read(|c| c.state)
    }

    pub(crate) fn wrong_state(&self, wanted: &'static str) -> SandboxError {
        SandboxError::WrongState {
            id: self.id.clone(),
            state: format!("{:?}", self.state()),
            wanted,
        }
    }
}

/// All sandboxes.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<BTreeMap<String, Arc<Entry>>>);

impl Registry {
    /// Adds a sandbox unless its id or name is taken.
    pub(crate) fn reserve(&self, entry: &Arc<Entry>) -> Result<(), SandboxError> {
        let mut entries = lock(&self.0);
        let key = |e: &Entry| {
            e.record.read(|s| {
                let spec = &s.spec;
                (
                    spec.namespace.clone(),
                    spec.name.clone(),
                    spec.uid.clone(),
                    spec.attempt,
                )
            })
        };
        let wanted = key(entry);
        let taken = entries
            .values()
            .find(|other| other.id == entry.id || key(other) == wanted);
        if let Some(other) = taken {
            return Err(SandboxError::Exists {
                name: format!("sandbox {}/{} (attempt {})", wanted.0, wanted.1, wanted.3),
                id: other.id.clone(),
            });
        }
        entries.insert(entry.id.clone(), Arc::clone(entry));
        Ok(())
    }

    pub(crate) fn get(&self, id: &str) -> Result<Arc<Entry>, SandboxError> {
        let found = lock(&self.0).get(id).cloned();
        found.ok_or_else(|| SandboxError::NoSuchSandbox(id.to_owned()))
    }

    pub(crate) fn list(&self) -> Vec<Arc<Entry>> {
        lock(&self.0).values().cloned().collect()
    }

    pub(crate) fn remove(&self, id: &str) {
        lock(&self.0).remove(id);
    }

    /// A container and its sandbox.
    pub(crate) fn container(
        &self,
        id: &str,
    ) -> Result<(Arc<Entry>, Arc<ContainerEntry>), SandboxError> {
        lock(&self.0)
            .values()
            .find_map(|entry| Some((Arc::clone(entry), entry.container(id)?)))
            .ok_or_else(|| SandboxError::NoSuchContainer(id.to_owned()))
    }
}
