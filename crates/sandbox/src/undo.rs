//! The undo stack: what each step of a sandbox or container takes back. The
//! stack is part of the record, so a daemon that was killed in the middle
//! undoes the same as the one that began. Every undo can be repeated.

use crate::container::undo_container_step;
use crate::error::{SandboxError, chain};
use crate::record::{NotReadyReason, SandboxState, Step};
use crate::registry::Entry;
use crate::{Inner, cgroup, death, network, orphans};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is left of a sandbox after an undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The directory with its logs: the sandbox stays as a record.
    Logs,
    /// Nothing.
    Nothing,
}

/// Undoes the steps of a sandbox from the last to the first; its containers go
/// first unless they are kept with the logs. The first failure ends it, and what
/// is left of the stack stays recorded.
pub(crate) async fn undo_sandbox(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    keep: Keep,
) -> Result<(), SandboxError> {
    if keep == Keep::Nothing {
        for container in entry.containers() {
            crate::container::forget(inner, entry, &container).await?;
        }
    }
    let steps = entry.record.read(|s| s.steps.clone());
    for step in steps.iter().rev() {
        if keep == Keep::Logs && *step == Step::StateDir {
            continue;
        }
        undo_step(inner, entry, step).await?;
        entry
            .record
            .update(|sandbox| {
                sandbox.steps.retain(|other| other != step);
                if matches!(step, Step::Vmm(_)) {
                    sandbox.block_volumes.clear();
                }
                if *step == Step::Network {
                    sandbox.network = None;
                    sandbox.pod_ips.clear();
                }
            })
            .await?;
    }
    Ok(())
}

async fn undo_step(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    step: &Step,
) -> Result<(), SandboxError> {
    let paths = inner.config.paths(&entry.id);
    match step {
        Step::Network => network::remove(inner, entry).await,
        Step::StateDir => remove_dir(&entry.id, paths.state).await,
        Step::RunDir => remove_dir(&entry.id, paths.run).await,
        // Freeing the blocks of a large disk takes its time.
        Step::Scratch => {
            let scratch = paths.scratch();
            crate::blocking(&entry.id, move || remove_file(&scratch)).await?
        }
        Step::Vmm(_) => {
            let live = entry.live();
            if let Some(live) = &live {
                live.process
                    .kill_and_wait(inner.config.timeouts.vmm_exit)
                    .await;
            }
            // Also finds one whose start was recorded, but not its pid.
            orphans::end_vmms_of(&paths.run, inner.config.timeouts.vmm_exit).await;
            if let Some(live) = live {
                live.set_died(death::find(&paths).cause);
            }
            entry.set_live(None);
            let spec = entry.record.read(|s| s.spec.clone());
            cgroup::remove(&spec, inner.config.timeouts.vmm_exit).await;
            Ok(())
        }
        // Steps of containers are on containers' stacks.
        Step::ImageLease(_)
        | Step::ImageExtent(_)
        | Step::Share(_)
        | Step::BlockDevice(_)
        | Step::GuestContainer
        | Step::Log => Ok(()),
    }
}

/// Undoes the steps of a container, as [`undo_sandbox`] does.
pub(crate) async fn undo_container(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    container: &crate::registry::ContainerEntry,
) -> Result<(), SandboxError> {
    let steps = container.record.read(|c| c.steps.clone());
    for step in steps.iter().rev() {
        undo_container_step(inner, entry, container, step).await?;
        container
            .record
            .update(|record| record.steps.retain(|other| other != step))
            .await?;
    }
    Ok(())
}

/// After a failed start: nothing of the sandbox stays, or, where that fails, it is
/// there as one without a VM, for a removal to try again.
pub(crate) async fn abandon(inner: &Arc<Inner>, entry: &Arc<Entry>, cause: &str) {
    let undone = undo_sandbox(inner, entry, Keep::Nothing).await;
    let result = match undone {
        Ok(()) => inner.forget_sandbox(entry).await,
        Err(error) => Err(error),
    };
    let Err(error) = result else { return };
    let error = chain(&error);
    tracing::error!(
        sandbox = entry.id,
        cause,
        error,
        "a failed sandbox could not be undone; remove it"
    );
    let reason = NotReadyReason::VmDied(format!("{cause}; it could not be undone: {error}"));
    let recorded = inner
        .set_sandbox_state(entry, SandboxState::NotReady, Some(reason))
        .await;
    if let Err(error) = recorded {
        tracing::error!(sandbox = entry.id, %error, "nor was that recorded");
    }
}

async fn remove_dir(id: &str, path: PathBuf) -> Result<(), SandboxError> {
    crate::blocking(id, move || remove_dir_now(&path)).await?
}

/// Removes a directory and all below it; a missing one is no fault. Blocks.
pub(crate) fn remove_dir_now(path: &Path) -> Result<(), SandboxError> {
    absent_is_fine(std::fs::remove_dir_all(path), path)
}

/// Removes a file; a missing one is no fault. Blocks.
fn remove_file(path: &Path) -> Result<(), SandboxError> {
    absent_is_fine(std::fs::remove_file(path), path)
}

fn absent_is_fine(result: io::Result<()>, path: &Path) -> Result<(), SandboxError> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(SandboxError::file("cannot remove", path, e))
        }
        _ => Ok(()),
    }
}
