//! Taking up the pods of the daemon before, and removing what belongs to pods
//! that are no more.

use super::pods::{Inner, state_error};
use super::{Config, PodEngine, remove_dir};
use crate::error::{EngineError, chain};
use crate::objects::Objects;
use crate::{plan, pod_task, sizing};
use image_store::ImageStore;
use sandbox::{Sandbox, Sandboxes};
use state_store::StateStore;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Version of the records' layout.
const RECORD_VERSION: u32 = 1;

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
        let table = state.table("pods", RECORD_VERSION);
        let objects = Objects::open(state)?;
        let inner = Arc::new(Inner::new(
            config, sandboxes, images, objects, table, most_mib,
        ));
        let engine = Self { inner };
        engine.load()?;
        engine.sweep().await;
        for entry in engine.inner.entries() {
            pod_task::spawn(&engine.inner, &entry);
        }
        Ok(engine)
    }

    fn load(&self) -> Result<(), EngineError> {
        let inner = &self.inner;
        let records = inner.table.list().map_err(|e| state_error("(all)", &e))?;
        for (id, record) in records {
            let manifest = match record.manifest() {
                Ok(manifest) => manifest,
                Err(error) => {
                    tracing::error!(pod = id, %error, "the record of a pod cannot be read; it is left alone");
                    continue;
                }
            };
            let size = sizing::vm_size(&manifest, &inner.config.defaults, u64::MAX)?;
            inner.add_known(record, manifest, size);
        }
        Ok(())
    }

    /// Removes what belongs to pods that are no more.
    async fn sweep(&self) {
        let inner = &self.inner;
        let known: BTreeSet<String> = inner.entries().iter().map(|e| e.id.clone()).collect();
        let owner = |sandbox: &Sandbox| sandbox.spec.labels.get(plan::POD_LABEL).cloned();
        for sandbox in inner.sandboxes.sandboxes() {
            if owner(&sandbox).is_some_and(|owner| !known.contains(&owner)) {
                let (sandboxes, id) = (inner.sandboxes.clone(), sandbox.spec.id);
                // Not waited for: it may run CNI plugins, which may hang.
                tokio::spawn(async move {
                    tracing::warn!(sandbox = id, "removing the sandbox of no pod");
                    if let Err(error) = sandboxes.remove_sandbox(&id).await {
                        tracing::error!(sandbox = id, error = chain(&error), "it stays");
                    }
                });
            }
        }
        for pod in inner.volumes.pods() {
            if !known.contains(&pod)
                && let Err(error) = inner.volumes.remove(&pod)
            {
                tracing::warn!(%error, "volumes of no pod stay");
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
}

/// Memory of the host in MiB.
fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
    bytes >> 20
}
