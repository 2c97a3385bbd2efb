//! The task of one pod: looks at its record and at its sandbox, asks
//! [`crate::state`] what is to be done, does it, and begins again. What it did
//! is recorded, so that a task of the next daemon goes on where this one ended.
//!
//! The task is level-triggered: events of the sandbox crate only wake it. Work
//! that is under way is dropped when something else is wanted of the pod; the
//! sandbox crate finishes what it has begun, and the next round finds it.

use crate::container_task::{self, Prefetched};
use crate::engine::{Entry, Inner, blocking, now_ns, remove_dir};
use crate::error::{EngineError, chain};
use crate::record::{ContainerState, PodRecord, Wanted};
use crate::state::{self, Next, Rules, Slot};
use crate::{images, observe, plan};
use sandbox::{Event, NotReadyReason, PathVolume, Sandbox, SandboxError, SandboxState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::time::Instant;

/// Reason of a pod that could not be removed yet.
pub(crate) const NOT_REMOVED: &str = "RemoveFailed";
/// Reason of a pod that waits for a volume.
const FAILED_MOUNT: &str = "FailedMount";
/// Pause before a failed removal or a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the pod's task.
pub(crate) fn spawn(inner: &Arc<Inner>, entry: &Arc<Entry>) {
    let (inner, entry) = (Arc::clone(inner), Arc::clone(entry));
    tokio::spawn(async move {
        let task = Task {
            rules: Rules {
                policy: entry.manifest.spec.restart_policy,
                backoff: inner.config.restart_backoff,
            },
            inner,
            entry,
        };
        task.run().await;
    });
}

/// What wakes a pod's task.
#[derive(Debug)]
struct Heard {
    events: broadcast::Receiver<Event>,
    objects: watch::Receiver<u64>,
    /// When the pod's volumes are to be looked at: they may not show what their
    /// objects are, or still hold what was replaced.
    refresh_at: Option<Instant>,
}

impl Heard {
    /// Waits until an object has changed, or some time has passed: what the host
    /// has at a path tells nobody when it comes.
    async fn object_or_time(&mut self) {
        let _ = tokio::time::timeout(RETRY, self.objects.changed()).await;
    }
}

/// A pod's task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) inner: Arc<Inner>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) rules: Rules,
}

impl Task {
    async fn run(&self) {
        let mut wanted = self.entry.wanted.subscribe();
        // Before the first look, so that nothing falls between.
        let mut heard = Heard {
            events: self.inner.sandboxes.subscribe(),
            objects: self.inner.objects.watch(),
            // The daemon before may have ended before it wrote them.
            refresh_at: Some(Instant::now()),
        };
        let mut images = Prefetched::default();
        loop {
            let goal = *wanted.borrow_and_update();
            let round = self.round(goal, &mut heard, &mut images);
            let result = tokio::select! {
                result = round => result,
                changed = wanted.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            match result {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(
                        pod = self.entry.id,
                        error = chain(&error),
                        "a pod's task is held up"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// One round; `false` when the pod is gone.
    async fn round(
        &self,
        goal: Wanted,
        heard: &mut Heard,
        images: &mut Prefetched,
    ) -> Result<bool, EngineError> {
        let over = self.entry.record.read(|record| record.pod.phase).is_final();
        match goal {
            Wanted::Remove => return self.remove().await.map(|()| false),
            Wanted::Stop { grace_ms } if !over => {
                self.stop(Duration::from_millis(grace_ms)).await?;
            }
            _ if over => {
                if self.end_vm().await? {
                    // Nothing more to do until something else is wanted.
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(RETRY).await;
            }
            _ => self.step(heard, images).await?,
        }
        Ok(true)
    }

    pub(crate) fn update<R>(
        &self,
        change: impl FnOnce(&mut PodRecord) -> R,
    ) -> Result<R, EngineError> {
        self.entry.update(change)
    }

    /// Its sandbox, if it has one.
    fn sandbox(&self) -> Option<Sandbox> {
        let id = self.entry.record.get().sandbox_id?;
        self.inner.sandboxes.sandbox(&id).ok()
    }

    /// Does what comes next, or waits until something may.
    async fn step(&self, heard: &mut Heard, images: &mut Prefetched) -> Result<(), EngineError> {
        let ready = self.look().await?;
        if ready {
            self.refresh_volumes(heard).await;
        }
        let record = self.entry.record.get();
        match state::next(&record, ready, now_ns()) {
            Next::Finish(phase) => self.finish(phase, "", ""),
            // One is being made since a round that was dropped, or being undone.
            Next::Sandbox if self.sandbox().is_some() => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(())
            }
            Next::Sandbox => {
                let made = match self.mount_volumes().await? {
                    Some(disks) => self.run_sandbox(images, disks).await?,
                    None => false,
                };
                if !made {
                    heard.object_or_time().await;
                }
                Ok(())
            }
            Next::Start(slot) => {
                let id = record.sandbox_id.unwrap_or_default();
                container_task::start(self, slot, &id, images).await
            }
            Next::Wait(until) => {
                // Without a VM nobody sees them.
                let refresh_at = heard.refresh_at.filter(|_| ready);
                let sandbox = record.sandbox_id.as_deref();
                self.wait(until, refresh_at, sandbox, heard).await;
                Ok(())
            }
        }
    }

    /// Makes the volumes that the host holds, and says which are disks of the VM;
    /// `None` where one has to wait.
    async fn mount_volumes(&self) -> Result<Option<Vec<PathVolume>>, EngineError> {
        let (inner, entry) = (Arc::clone(&self.inner), Arc::clone(&self.entry));
        let mounted = blocking(move || Ok(inner.mount_volumes(&entry))).await?;
        match mounted {
            Ok(disks) => Ok(Some(disks)),
            Err(message) => self.set_mount_failure(Some(message)).map(|()| None),
        }
    }

    /// Says why a volume cannot be had now, or that all can.
    fn set_mount_failure(&self, message: Option<String>) -> Result<(), EngineError> {
        self.update(|record| {
            let pod = &mut record.pod;
            if let Some(message) = message {
                pod.reason = FAILED_MOUNT.to_owned();
                pod.message = message;
            } else if pod.reason == FAILED_MOUNT {
                pod.reason.clear();
                pod.message.clear();
            }
        })
    }

    /// Has volumes show what their objects are now. What cannot be written is
    /// tried again in another round.
    async fn refresh_volumes(&self, heard: &mut Heard) {
        if heard.refresh_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let (inner, entry) = (Arc::clone(&self.inner), Arc::clone(&self.entry));
        heard.refresh_at = match blocking(move || inner.refresh_volumes(&entry)).await {
            Ok(again) => again,
            Err(_) => Some(RETRY),
        }
        .map(|after| Instant::now() + after);
    }

    /// Removes the volumes that the host holds.
    async fn remove_volumes(&self) -> Result<(), EngineError> {
        let (inner, entry) = (Arc::clone(&self.inner), Arc::clone(&self.entry));
        blocking(move || inner.remove_volumes(&entry)).await
    }

    /// Brings the record in line with the sandbox; says whether that is ready.
    async fn look(&self) -> Result<bool, EngineError> {
        let record = self.entry.record.get();
        let Some(id) = &record.sandbox_id else {
            return Ok(false);
        };
        let sandbox = match self.inner.sandboxes.sandbox(id) {
            Ok(sandbox) => sandbox,
            // Its making was recorded, then the daemon ended; or it was undone.
            Err(_) if record.pod.started_at_ns == 0 => return Ok(false),
            Err(_) => {
                self.vm_died("its sandbox is gone")?;
                return Ok(false);
            }
        };
        let containers = self.inner.sandboxes.containers(id);
        let leftover = self.update(|record| {
            if sandbox.state == SandboxState::Ready {
                observe::sandbox(record, &sandbox);
            }
            observe::containers(record, &self.rules, &containers)
        })?;
        for container in leftover {
            // Its place in the guest is freed; its log stays.
            if let Err(error) = self.inner.sandboxes.remove_container(&container).await {
                tracing::warn!(
                    container,
                    error = chain(&error),
                    "an ended container stays for now"
                );
            }
        }
        match (sandbox.state, sandbox.reason) {
            (SandboxState::Ready, _) => {
                self.update(|record| record.pod.phase = state::phase(record))?;
                return Ok(true);
            }
            (SandboxState::NotReady, Some(NotReadyReason::VmDied(cause))) => {
                self.vm_died(&cause)?
            }
            (SandboxState::NotReady, _) => self.vm_died("it was stopped")?,
            // By another hand; looked at again when that is done.
            (SandboxState::Creating | SandboxState::Removing, _) => {}
        }
        Ok(false)
    }

    fn vm_died(&self, cause: &str) -> Result<(), EngineError> {
        self.update(|record| {
            state::vm_died(record, &self.rules, cause, now_ns());
            record.pod.vm_is_gone();
            record.pod.reason = state::VM_DIED.to_owned();
            record.pod.message = format!("the pod's virtual machine ended: {cause}");
            record.pod.phase = state::phase(record);
        })
    }

    /// Makes the pod's next sandbox with these disks; the images are fetched at the
    /// same time. `false` where a disk has to wait.
    async fn run_sandbox(
        &self,
        images: &mut Prefetched,
        disks: Vec<PathVolume>,
    ) -> Result<bool, EngineError> {
        let before = self.entry.record.get();
        container_task::prefetch(self, images);
        // A sandbox of this id may be left from a daemon that ended while making
        // it: then it was undone, and the same id is taken again.
        let (id, attempt) = match &before.sandbox_id {
            Some(id) => (id.clone(), before.attempts.saturating_sub(1)),
            None => (self.sandbox_id(before.attempts), before.attempts),
        };
        self.update(|record| {
            record.sandbox_id = Some(id.clone());
            record.attempts = attempt + 1;
            record.pod.started_at_ns = 0;
            record.pod.stages.clear();
        })?;
        self.remove_other_sandboxes(&id).await;
        let facts = self.entry.facts(&before.pod);
        let spec = plan::sandbox(&facts, &id, attempt, self.inner.config.network, disks);
        match self.inner.sandboxes.run_sandbox(spec).await {
            Ok(sandbox) => {
                self.set_mount_failure(None)?;
                self.update(|record| observe::sandbox(record, &sandbox))?;
            }
            // In use, or not what it should be: a volume as others that have to wait.
            Err(error @ SandboxError::Volume { .. }) => {
                self.set_mount_failure(Some(chain(&error)))?;
                return Ok(false);
            }
            // Begun in a round that was dropped: its state is looked at.
            Err(SandboxError::Exists { .. }) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => self.sandbox_failed(&error)?,
        }
        Ok(true)
    }

    /// The first sandbox has the pod's id.
    fn sandbox_id(&self, attempt: u32) -> String {
        if attempt == 0 {
            self.entry.id.clone()
        } else {
            sandbox::new_id()
        }
    }

    /// A pod that never had a VM has failed: its user should see why at once. One
    /// that had gets another, later.
    fn sandbox_failed(&self, error: &SandboxError) -> Result<(), EngineError> {
        let cause = chain(error);
        tracing::warn!(pod = self.entry.id, cause, "no virtual machine for a pod");
        let first = self.entry.record.get().attempts <= 1;
        if first || !error.is_transient() {
            return self.finish(
                crate::record::Phase::Failed,
                "FailedCreatePodSandBox",
                &cause,
            );
        }
        self.update(|record| {
            record.pod.started_at_ns = now_ns();
            state::vm_died(record, &self.rules, &cause, now_ns());
            record.pod.started_at_ns = 0;
            record.pod.reason = "FailedCreatePodSandBox".to_owned();
        })
    }

    /// Sandboxes of earlier attempts: their logs are of no more use.
    async fn remove_other_sandboxes(&self, keep: &str) {
        for sandbox in self.inner.sandboxes.sandboxes() {
            let ours = sandbox.spec.labels.get(plan::POD_LABEL) == Some(&self.entry.id);
            if ours
                && sandbox.spec.id != keep
                && let Err(error) = self.inner.sandboxes.remove_sandbox(&sandbox.spec.id).await
            {
                tracing::warn!(
                    pod = self.entry.id,
                    error = chain(&error),
                    "an old sandbox stays"
                );
            }
        }
    }

    /// Waits for an event of the sandbox, a changed object, or one of two times.
    async fn wait(
        &self,
        until_ns: Option<i64>,
        refresh_at: Option<Instant>,
        sandbox: Option<&str>,
        heard: &mut Heard,
    ) {
        let (events, objects) = (&mut heard.events, &mut heard.objects);
        let ours = async {
            loop {
                match events.recv().await {
                    Ok(event) if Some(event.sandbox_id.as_str()) == sandbox => return,
                    Ok(_) => {}
                    // Some were lost: one of them may have been ours.
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let time = async {
            match until_ns {
                Some(until) => {
                    let left = u64::try_from(until - now_ns()).unwrap_or(0);
                    tokio::time::sleep(Duration::from_nanos(left) + Duration::from_millis(1)).await;
                }
                None => std::future::pending().await,
            }
        };
        let refresh = async {
            match refresh_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ours => {}
            () = refresh => {}
            // Never an error: the sender is the engine's, which this task has.
            _ = objects.changed() => {
                heard.refresh_at = Some(Instant::now());
                // What waits for an object may have it now.
                let _ = self.update(|record| {
                    for slot in record.slots() {
                        let status = record.status_mut(slot);
                        if status.reason == container_task::CONFIG_ERROR {
                            status.not_before_ns = 0;
                        }
                    }
                });
            }
            () = time => {
                // What waited for a time says so no longer.
                let _ = self.update(|record| {
                    if record.sandbox_not_before_ns <= now_ns() {
                        record.sandbox_not_before_ns = 0;
                    }
                });
            }
        }
    }

    /// Records the final phase. The VM is ended in the next round.
    fn finish(
        &self,
        phase: crate::record::Phase,
        reason: &str,
        message: &str,
    ) -> Result<(), EngineError> {
        self.update(|record| {
            // Whatever has not ended by now ends with the VM.
            for slot in record.slots() {
                stopped(record, slot);
            }
            state::give_up_waiting(record);
            let pod = &mut record.pod;
            pod.phase = phase;
            pod.finished_at_ns = now_ns();
            if !reason.is_empty() {
                pod.reason = reason.to_owned();
                pod.message = message.to_owned();
            } else if phase == crate::record::Phase::Succeeded {
                pod.reason.clear();
                pod.message.clear();
            } else if pod.reason.is_empty() {
                (pod.reason, pod.message) = state::failure(pod);
            }
        })
    }

    /// Ends the VM of a pod that is over and gives its addresses back; says whether
    /// all of that is done.
    async fn end_vm(&self) -> Result<bool, EngineError> {
        let mut done = true;
        if let Some(sandbox) = self.sandbox()
            && let Err(error) = self.inner.sandboxes.stop_sandbox(&sandbox.spec.id).await
        {
            tracing::error!(
                pod = self.entry.id,
                error = chain(&error),
                "its sandbox could not be stopped"
            );
            done = false;
        }
        if let Err(error) = self.remove_volumes().await {
            tracing::error!(
                pod = self.entry.id,
                error = chain(&error),
                "its volumes stay for now"
            );
            done = false;
        }
        if let Err(missing) = images::release(&self.inner.images, &self.entry.id).await {
            let error = missing.message;
            tracing::error!(pod = self.entry.id, error, "its images stay in use for now");
            done = false;
        }
        self.update(|record| record.pod.vm_is_gone())?;
        Ok(done)
    }

    /// Ends the containers, all at once, then the VM.
    async fn stop(&self, grace: Duration) -> Result<(), EngineError> {
        if let Some(sandbox) = self.sandbox() {
            let id = sandbox.spec.id;
            if sandbox.state == SandboxState::Ready {
                let mut stops = tokio::task::JoinSet::new();
                for container in self.inner.sandboxes.containers(&id) {
                    let sandboxes = self.inner.sandboxes.clone();
                    stops.spawn(async move {
                        let stopped = sandboxes.stop_container(&container.id, grace, None).await;
                        if let Err(error) = stopped {
                            tracing::warn!(
                                container = container.id,
                                error = chain(&error),
                                "it ends with its VM"
                            );
                        }
                    });
                }
                while stops.join_next().await.is_some() {}
            } else if let Err(error) = self.inner.sandboxes.stop_sandbox(&id).await {
                tracing::warn!(
                    pod = self.entry.id,
                    error = chain(&error),
                    "its VM could not be stopped"
                );
            }
            let containers = self.inner.sandboxes.containers(&id);
            let never = Rules {
                policy: crate::manifest::RestartPolicy::Never,
                ..self.rules
            };
            self.update(|record| observe::containers(record, &never, &containers))?;
        }
        let phase = state::ended_phase(&self.entry.record.get());
        self.finish(phase, "Stopped", "the pod was stopped by request")?;
        self.end_vm().await.map(drop)
    }

    /// Removes everything; the record last.
    async fn remove(&self) -> Result<(), EngineError> {
        loop {
            let Err(message) = self.try_remove().await else {
                return self.inner.forget(&self.entry);
            };
            tracing::error!(
                pod = self.entry.id,
                message,
                "a pod could not be removed yet"
            );
            self.update(|record| {
                record.pod.reason = NOT_REMOVED.to_owned();
                record.pod.message = message;
            })?;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_remove(&self) -> Result<(), String> {
        let record = self.entry.record.get();
        let sandboxes = &self.inner.sandboxes;
        let ids = sandboxes
            .sandboxes()
            .into_iter()
            .filter(|s| s.spec.labels.get(plan::POD_LABEL) == Some(&self.entry.id))
            .map(|s| s.spec.id)
            .chain(record.sandbox_id);
        for id in ids {
            sandboxes.remove_sandbox(&id).await.map_err(|e| chain(&e))?;
        }
        self.remove_volumes().await.map_err(|e| chain(&e))?;
        let released = images::release(&self.inner.images, &self.entry.id).await;
        released.map_err(|missing| missing.message)?;
        remove_dir(&self.entry.log_dir).map_err(|e| chain(&e))
    }
}

/// A container that has not ended, of a pod that has.
fn stopped(record: &mut PodRecord, slot: Slot) {
    let status = record.status_mut(slot);
    if status.state == ContainerState::Running {
        status.ended = status.instances;
        status.state = ContainerState::Terminated;
        status.exit_code = 137;
        status.signal = 9;
        status.reason = "Error".to_owned();
        status.finished_at_ns = now_ns();
    }
}
