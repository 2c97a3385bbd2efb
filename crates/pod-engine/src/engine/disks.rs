//! What PersistentVolumes that were given again mean for the disks of running pods: the
//! room that their files have grown by, and other limits.

use super::Inner;
use crate::error::{EngineError, chain};
use crate::objects::{Applied, Kind, io_limits};
use sandbox::{IoLimits, SandboxError, SandboxState, VolumeState};
use std::collections::BTreeSet;

impl Inner {
    /// Brings the disks of running pods in line with those volumes among `applied`. All
    /// are tried; the first failure is told.
    pub(super) async fn refresh_disks(&self, applied: &[Applied]) -> Result<(), EngineError> {
        let volumes = applied
            .iter()
            .filter(|applied| applied.key.kind == Kind::PersistentVolume);
        let given: BTreeSet<&str> = volumes.map(|applied| applied.key.name.as_str()).collect();
        let mut result = Ok(());
        if given.is_empty() {
            return result;
        }
        for entry in self.entries() {
            let (pod, sandbox) = entry
                .record
                .read(|record| (record.pod.clone(), record.sandbox_id.clone()));
            let Some(sandbox) = sandbox else {
                continue;
            };
            for volume in &entry.manifest.spec.volumes {
                let claim = volume.persistent_volume_claim.as_ref();
                let claim = claim.and_then(|c| self.objects.claim(&pod.namespace, &c.claim_name));
                let Some(name) = claim.map(|claim| claim.spec.volume_name) else {
                    continue;
                };
                if !given.contains(name.as_str()) {
                    continue;
                }
                let given = self.objects.volume(&name);
                let limits = given.and_then(|v| io_limits(&v.metadata.annotations).ok());
                let refreshed = self
                    .refresh_disk(&sandbox, &volume.name, limits.unwrap_or_default())
                    .await;
                if let Err(error) = refreshed {
                    let message = format!(
                        "PersistentVolume {name} is kept, but the pod has it as it was: {}",
                        chain(&error)
                    );
                    result = result.and(Err(EngineError::Volumes {
                        pod: pod.full_name(),
                        message,
                    }));
                }
            }
        }
        result
    }

    async fn refresh_disk(
        &self,
        sandbox_id: &str,
        name: &str,
        limits: IoLimits,
    ) -> Result<(), SandboxError> {
        let Ok(sandbox) = self.sandboxes.sandbox(sandbox_id) else {
            // About to be made: with what is known by then.
            return Ok(());
        };
        let attached = |v: &&sandbox::BlockVolume| v.state == VolumeState::Attached;
        let Some(volume) = sandbox.block_volume(name).filter(attached) else {
            // A directory, or not there yet.
            return Ok(());
        };
        if sandbox.state != SandboxState::Ready {
            return Ok(());
        }
        if volume.spec.limits != limits {
            self.sandboxes
                .limit_volume(sandbox_id, name, limits)
                .await?;
        }
        self.sandboxes.resize_volume(sandbox_id, name).await?;
        Ok(())
    }
}
