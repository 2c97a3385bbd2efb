//! The engine: all pods of the daemon, and the calls on them.

mod accept;
mod disks;
mod ephemeral;
mod log_files;
mod objects;
mod pods;
mod recover;

#[cfg(test)]
pub(crate) use accept::new_record;
pub(crate) use accept::uuid;
pub use log_files::{LogFile, LogFiles};
pub(crate) use objects::blocking;
pub(crate) use pods::{Entry, Inner, remove_dir};

use crate::backoff::Backoff;
use crate::error::EngineError;
use crate::manifest::{ManifestError, Stream};
use crate::pod_task;
use crate::record::{Pod, Wanted};
use crate::sizing::{self, Defaults};
use sandbox::Engine;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

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
    /// Pods get the node's network; otherwise their loopback only.
    pub network: bool,
    /// Directories of the host beneath which pods may have hostPath volumes and
    /// PersistentVolumes may lie.
    pub allow_host_paths: Vec<PathBuf>,
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
            network: true,
            allow_host_paths: Vec::new(),
        }
    }
}

/// The pods of this daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PodEngine {
    inner: Arc<Inner>,
}

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

impl PodEngine {
    /// Accepts the one `v1.Pod` of a manifest (YAML or JSON), and the objects beside
    /// it. The answer comes when all are recorded; the pod runs soon after.
    ///
    /// # Errors
    /// [`EngineError::Manifest`] with every fault of the manifest,
    /// [`EngineError::NameTaken`] while a pod has its name,
    /// [`EngineError::Object`] if an object cannot be kept: then nothing is.
    pub async fn run_pod(
        &self,
        manifest: &str,
        engine: Option<Engine>,
    ) -> Result<Arc<Pod>, EngineError> {
        let inner = &self.inner;
        let Stream { pod, objects } = Stream::parse(manifest, &inner.limits())?;
        let (manifest, tree) = pod.ok_or(ManifestError::NoPod)?;
        self.check_host_paths(Some(&manifest), &objects)?;
        let size = sizing::vm_size(&manifest, &inner.config.defaults, inner.most_mib)?;
        let record = accept::new_record(&manifest, tree.to_string(), engine, size);
        inner.check_name(&record)?;
        self.keep(objects).await?;
        let entry = inner.add(record, manifest, size)?;
        pod_task::spawn(inner, &entry);
        Ok(Arc::new(entry.pod()))
    }

    /// The pods whose labels have all of these, the oldest first.
    pub fn list(&self, selector: &BTreeMap<String, String>) -> Vec<Arc<Pod>> {
        let mut pods: Vec<Arc<Pod>> = self
            .inner
            .entries()
            .iter()
            .map(|entry| Arc::new(entry.pod()))
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
        Ok(Arc::new(self.inner.find(name)?.pod()))
    }

    /// The pod now and after every change; ends when it is removed. Changes that
    /// follow each other quickly may be seen as one.
    ///
    /// # Errors
    /// As [`PodEngine::get`].
    pub fn watch(&self, name: &str) -> Result<watch::Receiver<Arc<Pod>>, EngineError> {
        let entry = self.inner.find(name)?;
        let watch = entry.record.watch();
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
        if let Some(mut watch) = entry.record.watch() {
            // Ends early only where the pod is removed meanwhile.
            let _ = watch.wait_for(over).await;
        }
        Ok(Arc::new(entry.pod()))
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
        let pod = entry.pod();
        if !force && !pod.phase.is_final() {
            return Err(EngineError::StillRunning(pod.full_name()));
        }
        want(&entry, Wanted::Remove)?;
        if let Some(mut watch) = entry.record.watch() {
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
        let pod = entry.pod();
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
        Ok(log_files::log_files(&pod, status, &entry.log_dir))
    }
}

/// Records what is wanted and tells the pod's task. A removal is not taken back.
fn want(entry: &Entry, wanted: Wanted) -> Result<(), EngineError> {
    let now = entry.update(|record| {
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
