//! The engine: all pods of the daemon, and the calls on them.

use crate::backoff::Backoff;
use crate::cell::{Cell, state_error};
use crate::error::{EngineError, chain};
use crate::manifest::{Manifest, NodeLimits};
use crate::record::{ContainerState, ContainerStatus, Phase, Pod, PodRecord, Vm, Wanted};
use crate::sizing::{Defaults, VmSize};
use crate::{plan, pod_task, sizing};
use image_store::ImageStore;
use sandbox::{Engine, Sandboxes};
use state_store::{StateStore, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Version of the records' layout.
const RECORD_VERSION: u32 = 1;

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// State directory; logs lie in `<root>/logs/<pod id>/<container>/<n>.log`.
    pub root: PathBuf,
    /// Sizes of VMs.
    pub defaults: Defaults,
    /// Pauses between restarts.
    pub restart_backoff: Backoff,
    /// Pods the daemon holds, ended ones included.
    pub max_pods: usize,
    /// Memory in MiB that a pod's VM can have; `None`: all of the host's.
    pub max_memory_mib: Option<u64>,
}

impl Config {
    /// Settings with the defaults.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            defaults: Defaults::default(),
            restart_backoff: Backoff::default(),
            max_pods: 10_000,
            max_memory_mib: None,
        }
    }
}

/// The pods of this daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PodEngine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) images: ImageStore,
    table: Table<PodRecord>,
    pods: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Memory in MiB that a pod's VM can have.
    pub(crate) most_mib: u64,
}

/// A pod and what belongs to it while this daemon lives.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) manifest: Manifest,
    pub(crate) cell: Cell,
    pub(crate) size: VmSize,
    /// What is wanted of the pod; its task follows it.
    pub(crate) wanted: watch::Sender<Wanted>,
    pub(crate) log_dir: PathBuf,
}

/// The output of one instance of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// In the CRI log format. May not exist yet, or not at all if the instance
    /// never started.
    pub path: PathBuf,
    /// Nothing will be added to it any more.
    pub complete: bool,
}

/// The output of a container so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFiles {
    /// One per instance, in order.
    pub files: Vec<LogFile>,
    /// No file will be added any more, and all are complete.
    pub finished: bool,
}

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Forgets a pod of which nothing is left.
    pub(crate) fn forget(&self, entry: &Entry) -> Result<(), EngineError> {
        // First from the list: nobody finds a pod whose watch has ended.
        lock(&self.pods).remove(&entry.id);
        entry.cell.forget()
    }

    fn find(&self, name: &str) -> Result<Arc<Entry>, EngineError> {
        let pods = lock(&self.pods);
        if let Some(entry) = pods.get(name) {
            return Ok(Arc::clone(entry));
        }
        let (namespace, pod_name) = name.split_once('/').unwrap_or(("default", name));
        let named = pods.values().find(|entry| {
            let record = entry.cell.get();
            record.pod.name == pod_name && record.pod.namespace == namespace
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

    fn entry(&self, manifest: Manifest, size: VmSize, cell: Cell) -> Entry {
        let record = cell.get();
        Entry {
            log_dir: self.config.root.join("logs").join(&record.pod.id),
            id: record.pod.id,
            manifest,
            size,
            wanted: watch::Sender::new(record.wanted),
            cell,
        }
    }

    /// Records a new pod under a name that is free.
    fn add(
        &self,
        record: PodRecord,
        manifest: Manifest,
        size: VmSize,
    ) -> Result<Arc<Entry>, EngineError> {
        let mut pods = lock(&self.pods);
        if pods.len() >= self.config.max_pods {
            return Err(EngineError::TooManyPods(pods.len()));
        }
        let (namespace, name) = (&record.pod.namespace, &record.pod.name);
        let taken = pods.values().find(|entry| {
            let other = entry.cell.get().pod;
            other.name == *name && other.namespace == *namespace
        });
        if let Some(other) = taken {
            return Err(EngineError::NameTaken {
                namespace: namespace.clone(),
                name: name.clone(),
                id: other.id.clone(),
            });
        }
        let cell = Cell::create(self.table.clone(), record)?;
        let entry = Arc::new(self.entry(manifest, size, cell));
        pods.insert(entry.id.clone(), Arc::clone(&entry));
        Ok(entry)
    }
}

impl PodEngine {
    /// Takes up the pods in `state` where the daemon before left them, and
    /// removes sandboxes and logs of pods that are no more.
    ///
    /// # Errors
    /// If the records cannot be read.
    pub async fn open(
        sandboxes: Sandboxes,
        images: ImageStore,
        state: &StateStore,
        config: Config,
    ) -> Result<Self, EngineError> {
        let most_mib = config.max_memory_mib.unwrap_or_else(host_memory_mib);
        let inner = Arc::new(Inner {
            config,
            sandboxes,
            images,
            table: state.table("pods", RECORD_VERSION),
            pods: Mutex::default(),
            most_mib,
        });
        let engine = Self { inner };
        engine.load()?;
        engine.sweep().await;
        for entry in lock(&engine.inner.pods).values() {
            pod_task::spawn(&engine.inner, entry);
        }
        Ok(engine)
    }

    fn load(&self) -> Result<(), EngineError> {
        let inner = &self.inner;
        let records = inner.table.list().map_err(|e| state_error("(all)", &e))?;
        let mut pods = lock(&inner.pods);
        for (id, record) in records {
            // It was accepted under the limits of its time.
            let limits = NodeLimits {
                memory_mib: u64::MAX,
            };
            let manifest = match Manifest::parse(&record.pod.manifest, &limits) {
                Ok((manifest, _)) => manifest,
                Err(error) => {
                    tracing::error!(pod = id, %error, "the record of a pod cannot be read; it is left alone");
                    continue;
                }
            };
            let size = sizing::vm_size(&manifest, &inner.config.defaults, u64::MAX)?;
            let cell = Cell::read(inner.table.clone(), record);
            let entry = inner.entry(manifest, size, cell);
            pods.insert(id, Arc::new(entry));
        }
        Ok(())
    }

    /// Removes what belongs to pods that are no more.
    async fn sweep(&self) {
        let inner = &self.inner;
        let known: BTreeSet<String> = lock(&inner.pods).keys().cloned().collect();
        for sandbox in inner.sandboxes.sandboxes() {
            let Some(owner) = sandbox.spec.labels.get(plan::POD_LABEL) else {
                continue;
            };
            if !known.contains(owner) {
                tracing::warn!(sandbox = sandbox.spec.id, "removing the sandbox of no pod");
                if let Err(error) = inner.sandboxes.remove_sandbox(&sandbox.spec.id).await {
                    tracing::error!(sandbox = sandbox.spec.id, error = chain(&error), "it stays");
                }
            }
        }
        let Ok(dirs) = std::fs::read_dir(inner.config.root.join("logs")) else {
            return;
        };
        for dir in dirs.filter_map(Result::ok) {
            if dir
                .file_name()
                .to_str()
                .is_none_or(|id| !known.contains(id))
                && let Err(error) = remove_dir(&dir.path())
            {
                tracing::warn!(%error, "logs of no pod stay");
            }
        }
    }

    /// Accepts the one `v1.Pod` of a manifest (YAML or JSON). The answer comes when
    /// it is recorded; it runs soon after.
    ///
    /// # Errors
    /// [`EngineError::Manifest`] with every fault of the manifest,
    /// [`EngineError::NameTaken`] while a pod has its name.
    pub async fn run_pod(
        &self,
        manifest: &str,
        engine: Option<Engine>,
    ) -> Result<Arc<Pod>, EngineError> {
        let inner = &self.inner;
        let limits = NodeLimits {
            memory_mib: inner.most_mib,
        };
        let (manifest, tree) = Manifest::parse(manifest, &limits)?;
        let size = sizing::vm_size(&manifest, &inner.config.defaults, inner.most_mib)?;
        let record = new_record(&manifest, tree.to_string(), engine, size);
        let entry = inner.add(record, manifest, size)?;
        pod_task::spawn(inner, &entry);
        Ok(Arc::new(entry.cell.get().pod))
    }

    /// The pods whose labels have all of these, the oldest first.
    pub fn list(&self, selector: &BTreeMap<String, String>) -> Vec<Arc<Pod>> {
        let mut pods: Vec<Arc<Pod>> = lock(&self.inner.pods)
            .values()
            .map(|entry| Arc::new(entry.cell.get().pod))
            .filter(|pod| selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)))
            .collect();
        pods.sort_by_key(|pod| pod.created_at_ns);
        pods
    }

    /// A pod by id, unique prefix of it, `name` (of namespace "default") or
    /// `namespace/name`.
    ///
    /// # Errors
    /// If there is none, or the prefix fits several.
    pub fn get(&self, name: &str) -> Result<Arc<Pod>, EngineError> {
        Ok(Arc::new(self.inner.find(name)?.cell.get().pod))
    }

    /// The pod now and after every change; ends when it is removed. Changes that
    /// follow each other quickly may be seen as one.
    ///
    /// # Errors
    /// As [`PodEngine::get`].
    pub fn watch(&self, name: &str) -> Result<watch::Receiver<Arc<Pod>>, EngineError> {
        let entry = self.inner.find(name)?;
        let watch = entry.cell.watch();
        watch.ok_or_else(|| EngineError::NoSuchPod(name.to_owned()))
    }

    /// Ends a pod: its containers get `grace` (`None`: its own
    /// terminationGracePeriodSeconds), then are killed; its VM ends. Its record
    /// and logs stay. Returns when that is done. Of an ended pod: success.
    ///
    /// # Errors
    /// As [`PodEngine::get`]; if the wish cannot be recorded.
    pub async fn stop(&self, name: &str, grace: Option<Duration>) -> Result<Arc<Pod>, EngineError> {
        let entry = self.inner.find(name)?;
        let grace_ms = grace.map_or_else(
            || entry.manifest.grace_ms(),
            |grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        );
        want(&entry, Wanted::Stop { grace_ms })?;
        let over = |pod: &Arc<Pod>| pod.phase.is_final() && pod.vm.is_none_or(|vm| vm.vmm_pid == 0);
        if let Some(mut watch) = entry.cell.watch() {
            // Ends early only where the pod is removed meanwhile.
            let _ = watch.wait_for(over).await;
        }
        Ok(Arc::new(entry.cell.get().pod))
    }

    /// Removes all of a pod; one that has not ended only by `force`. Of an unknown
    /// one: success.
    ///
    /// # Errors
    /// [`EngineError::StillRunning`] without force; [`EngineError::NotRemoved`]
    /// where something is in the way: it is tried again.
    pub async fn remove(&self, name: &str, force: bool) -> Result<(), EngineError> {
        let entry = match self.inner.find(name) {
            Err(EngineError::NoSuchPod(_)) => return Ok(()),
            other => other?,
        };
        let pod = entry.cell.get().pod;
        if !force && !pod.phase.is_final() {
            return Err(EngineError::StillRunning(pod.full_name()));
        }
        want(&entry, Wanted::Remove)?;
        if let Some(mut watch) = entry.cell.watch() {
            let failed = |pod: &Arc<Pod>| pod.reason == pod_task::NOT_REMOVED;
            if let Ok(pod) = watch.wait_for(failed).await {
                return Err(EngineError::NotRemoved {
                    pod: pod.full_name(),
                    message: pod.message.clone(),
                });
            }
        }
        Ok(())
    }

    /// Where the output of a container lies, every instance of it.
    ///
    /// # Errors
    /// As [`PodEngine::get`]; if the pod has no such container.
    pub fn log_files(&self, name: &str, container: &str) -> Result<LogFiles, EngineError> {
        let entry = self.inner.find(name)?;
        let pod = entry.cell.get().pod;
        let found = pod.all_containers().find(|status| status.name == container);
        let status = found.ok_or_else(|| EngineError::NoSuchContainer {
            pod: pod.full_name(),
            container: container.to_owned(),
            known: pod
                .all_containers()
                .map(|status| status.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        Ok(log_files(&pod, status, &entry.log_dir))
    }
}

fn log_files(pod: &Pod, status: &ContainerStatus, dir: &Path) -> LogFiles {
    let over = pod.phase.is_final();
    let files = (0..status.instances)
        .map(|instance| LogFile {
            path: plan::log_file(dir, &status.name, instance),
            complete: over || instance < status.ended,
        })
        .collect();
    // An init container that has ended runs again if the VM dies: new files may
    // come until the pod is over, but whoever follows should not wait for that.
    LogFiles {
        files,
        finished: over || status.state == ContainerState::Terminated,
    }
}

/// Records what is wanted and tells the pod's task. A removal is not taken back.
fn want(entry: &Entry, wanted: Wanted) -> Result<(), EngineError> {
    let now = entry.cell.update(|record| {
        if record.wanted != Wanted::Remove {
            record.wanted = wanted;
        }
        if wanted == Wanted::Remove && record.pod.reason == pod_task::NOT_REMOVED {
            record.pod.reason.clear();
            record.pod.message.clear();
        }
        record.wanted
    })?;
    entry.wanted.send_replace(now);
    Ok(())
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

/// Memory of the host in MiB.
fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
    bytes >> 20
}

fn new_record(
    manifest: &Manifest,
    text: String,
    engine: Option<Engine>,
    size: VmSize,
) -> PodRecord {
    let id = sandbox::new_id();
    let metadata = &manifest.metadata;
    let or = |text: &str, other: String| {
        if text.is_empty() {
            other
        } else {
            text.to_owned()
        }
    };
    let uid = format!(
        "{}-{}-{}-{}-{}",
        &id[..8],
        &id[8..12],
        &id[12..16],
        &id[16..20],
        &id[20..]
    );
    let statuses = |containers: &[crate::manifest::Container]| {
        containers
            .iter()
            .map(|c| ContainerStatus::new(&c.name, &c.image))
            .collect()
    };
    PodRecord {
        pod: Pod {
            namespace: or(&metadata.namespace, "default".to_owned()),
            name: or(
                &metadata.name,
                format!("{}{}", metadata.generate_name, &id[..5]),
            ),
            uid: or(&metadata.uid, uid),
            id,
            labels: metadata.labels.clone(),
            annotations: metadata.annotations.clone(),
            phase: Phase::Pending,
            reason: String::new(),
            message: String::new(),
            created_at_ns: now_ns(),
            started_at_ns: 0,
            finished_at_ns: 0,
            engine,
            init_containers: statuses(&manifest.spec.init_containers),
            containers: statuses(&manifest.spec.containers),
            vm: Some(Vm {
                vcpus: size.vcpus,
                memory_mib: size.memory_mib,
                vmm_pid: 0,
            }),
            stages: Vec::new(),
            manifest: text,
        },
        wanted: Wanted::Run,
        sandbox_id: None,
        attempts: 0,
        sandbox_backoff_ms: 0,
        sandbox_not_before_ns: 0,
    }
}
