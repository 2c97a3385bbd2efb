//! The calls on objects: given, listed, deleted.

use super::pods::Entry;
use super::{Inner, PodEngine};
use crate::error::{EngineError, chain};
use crate::manifest::{FieldError, Manifest, ManifestError, Stream};
use crate::objects::{Applied, Kind, Object, ObjectError, ObjectKey, ObjectSummary};
use crate::record::Pod;
use sandbox::PathVolume;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

impl PodEngine {
    /// Keeps the objects of a manifest, new ones and changed ones, all or none.
    /// When this returns, volumes of running pods show what was changed.
    ///
    /// # Errors
    /// [`EngineError::Manifest`] with every fault of the manifest,
    /// [`EngineError::Object`] if one of them cannot be kept.
    pub async fn apply_objects(&self, manifest: &str) -> Result<Vec<Applied>, EngineError> {
        let stream = Stream::parse(manifest, &self.inner.limits())?;
        if stream.pod.is_some() {
            return Err(ManifestError::UnwantedPod.into());
        }
        self.check_host_paths(None, &stream.objects)?;
        self.keep(stream.objects).await
    }

    /// All objects; of their data the keys.
    pub fn objects(&self) -> Vec<ObjectSummary> {
        self.inner.objects.list()
    }

    /// Deletes an object; says whether there was one. Pods that have it keep what
    /// they have of it.
    ///
    /// # Errors
    /// [`EngineError::Object`] while a claim or a pod needs it to find its data.
    pub async fn delete_object(&self, key: &ObjectKey) -> Result<bool, EngineError> {
        let user = self.inner.entries().into_iter().find(|entry| {
            let pod = entry.pod();
            key.kind == Kind::PersistentVolumeClaim
                && pod.namespace == key.namespace
                && !pod.phase.is_final()
                && claims(&entry.manifest).any(|name| name == key.name)
        });
        if let Some(user) = user {
            return Err(EngineError::Object(ObjectError::InUse {
                object: key.to_string(),
                user: format!("pod {}", user.pod().full_name()),
            }));
        }
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        blocking(move || inner.objects.delete(&key)).await
    }

    /// Refuses what lies elsewhere on the host than pods may reach.
    pub(super) fn check_host_paths(
        &self,
        pod: Option<&Manifest>,
        objects: &[Object],
    ) -> Result<(), EngineError> {
        let mut faults = Vec::new();
        let mut check = |field: String, path: &str| {
            if let Err(error) = self.inner.volumes.allowed().check(Path::new(path)) {
                faults.push(FieldError::new(field, chain(&error)));
            }
        };
        let volumes = pod.into_iter().flat_map(|pod| &pod.spec.volumes);
        for (i, volume) in volumes.enumerate() {
            if let Some(host) = &volume.host_path {
                check(format!("spec.volumes[{i}].hostPath.path"), &host.path);
            }
        }
        for object in objects {
            let Object::PersistentVolume(volume) = object else {
                continue;
            };
            let name = object.key();
            if let Some(local) = &volume.spec.local {
                check(format!("{name}: spec.local.path"), &local.path);
            }
            if let Some(host) = &volume.spec.host_path {
                check(format!("{name}: spec.hostPath.path"), &host.path);
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(ManifestError::Fields(faults).into())
    }

    /// Records objects, then brings the volumes of running pods in line.
    pub(super) async fn keep(&self, objects: Vec<Object>) -> Result<Vec<Applied>, EngineError> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let inner = Arc::clone(&self.inner);
        let applied = blocking(move || {
            let applied = inner.objects.apply(objects)?;
            for entry in inner.entries() {
                // Its task does it again, whatever came of this.
                let _ = inner.refresh_volumes(&entry);
            }
            Ok(applied)
        })
        .await?;
        self.inner.refresh_disks(&applied).await?;
        Ok(applied)
    }
}

impl Inner {
    /// Brings a pod's volumes in line with their objects, if they are mounted. Says
    /// after which time, if any, it is to be done again. Blocks.
    pub(crate) fn refresh_volumes(&self, entry: &Entry) -> Result<Option<Duration>, EngineError> {
        let _one = entry.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = entry.pod();
        let refreshed = self.volumes.refresh(&entry.facts(&pod), &self.objects);
        refreshed.map_err(|error| {
            tracing::warn!(
                pod = pod.id,
                error = chain(&error),
                "a volume is out of date"
            );
            EngineError::Volumes {
                pod: pod.full_name(),
                message: chain(&error),
            }
        })
    }

    /// Makes a pod's volumes, or says why they cannot be yet. Blocks.
    pub(crate) fn mount_volumes(&self, entry: &Entry) -> Result<Vec<PathVolume>, String> {
        let _one = entry.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = entry.pod();
        if let Some((claim, owner)) = self.claim_in_use(entry, &pod) {
            return Err(format!(
                "PersistentVolumeClaim {}/{claim} is ReadWriteOncePod and pod {owner} has it",
                pod.namespace
            ));
        }
        let mounted = self.volumes.mount(&entry.facts(&pod), &self.objects);
        mounted.map_err(|error| chain(&error))
    }

    /// A claim for one pod alone that an older pod has, and that pod.
    fn claim_in_use(&self, entry: &Entry, pod: &Pod) -> Option<(String, String)> {
        let alone = |name: &str| {
            let claim = self.objects.claim(&pod.namespace, name);
            claim.is_some_and(|c| c.spec.access_modes.iter().any(|m| m == "ReadWriteOncePod"))
        };
        let wanted: Vec<&str> = claims(&entry.manifest).filter(|name| alone(name)).collect();
        let has = |other: &Arc<Entry>| {
            let name = claims(&other.manifest).find(|name| wanted.contains(name))?;
            let owner = other.pod();
            let older = (owner.created_at_ns, &owner.id) < (pod.created_at_ns, &pod.id);
            let lives = owner.namespace == pod.namespace && !owner.phase.is_final();
            (older && lives).then(|| (name.to_owned(), owner.full_name()))
        };
        if wanted.is_empty() {
            return None;
        }
        self.entries().iter().find_map(has)
    }

    /// Removes a pod's volumes. Blocks.
    pub(crate) fn remove_volumes(&self, entry: &Entry) -> Result<(), EngineError> {
        let _one = entry.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        self.volumes.remove(&entry.id)
    }
}

/// The claims that a pod has.
fn claims(manifest: &Manifest) -> impl Iterator<Item = &str> {
    let volumes = manifest.spec.volumes.iter();
    volumes.filter_map(|v| Some(v.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// Does work that waits for a disk where waiting is no harm.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(EngineError::Task(chain(&error))))
}
