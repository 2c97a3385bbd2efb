//! What a starting daemon does with the records of the one before it: adopts
//! VMs that live, settles those that died, undoes what was half made, removes
//! what belongs to no record.

use crate::error::{SandboxError, chain};
use crate::live::Live;
use crate::record::{Container, ContainerState, Sandbox, SandboxState, Step, VmmId};
use crate::recorded::Recorded;
use crate::registry::{ContainerEntry, Entry};
use crate::vmm::{Process, Vmm};
use crate::{Inner, container, death, orphans, remove, undo, watch};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Brings records and world in line. A record that cannot be brought in line is
/// kept and said; the others are not held up by it.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<(), SandboxError> {
    load(inner)?;
    for entry in inner.registry.list() {
        if let Err(error) = recover_sandbox(inner, &entry).await {
            tracing::error!(sandbox = entry.id, error = %chain(&error), "cannot be recovered; remove it");
        }
    }
    let known: BTreeSet<String> = inner.registry.list().iter().map(|e| e.id.clone()).collect();
    let config = &inner.config;
    orphans::sweep(&config.root, &config.run, &known, config.timeouts.vmm_exit).await;
    Ok(())
}

/// Reads all records.
fn load(inner: &Arc<Inner>) -> Result<(), SandboxError> {
    let failed = |error: state_store::StateError| SandboxError::State {
        id: "(all)".to_owned(),
        message: chain(&error),
    };
    for (id, sandbox) in inner.sandboxes.list().map_err(failed)? {
        let entry = Arc::new(inner.sandbox_entry(&id, sandbox));
        inner.registry.reserve(&entry)?;
    }
    for (id, record) in inner.containers.list().map_err(failed)? {
        let sandbox_id = record.sandbox_id.clone();
        let recorded = Recorded::new(inner.containers.clone(), &id, record);
        let Ok(entry) = inner.registry.get(&sandbox_id) else {
            // Its sandbox's record went first; nothing of it is left.
            inner.containers.remove(&id).map_err(failed)?;
            continue;
        };
        if let Err(other) = entry.add_container(Arc::new(ContainerEntry::new(recorded))) {
            tracing::error!(
                container = id,
                other,
                "two containers of one name in the records"
            );
        }
    }
    Ok(())
}

async fn recover_sandbox(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    let sandbox: Sandbox = entry.record.get();
    match sandbox.state {
        SandboxState::Creating => {
            tracing::info!(sandbox = entry.id, "undoing a half-made sandbox");
            undo::undo_sandbox(inner, entry, undo::Keep::Nothing).await?;
            inner.forget_sandbox(entry).await
        }
        SandboxState::Removing => remove::finish(inner, entry).await,
        SandboxState::NotReady => {
            recover_containers(inner, entry).await?;
            undo::undo_sandbox(inner, entry, undo::Keep::Logs).await
        }
        SandboxState::Ready => match adopt(inner, entry, &sandbox).await {
            Some(live) => {
                entry.set_live(Some(Arc::clone(&live)));
                watch::spawn_adopted(inner, entry, &live);
                recover_containers(inner, entry).await
            }
            None => {
                let cause = death::find(&inner.config.paths(&entry.id)).cause;
                watch::settle(inner, entry, &cause, false).await;
                recover_containers(inner, entry).await
            }
        },
    }
}

/// The sandbox's VM, if it still lives and answers.
async fn adopt(inner: &Arc<Inner>, entry: &Arc<Entry>, sandbox: &Sandbox) -> Option<Arc<Live>> {
    let id: VmmId = sandbox.steps.iter().find_map(|step| match step {
        Step::Vmm(Some(id)) => Some(*id),
        _ => None,
    })?;
    let paths = inner.config.paths(&entry.id);
    let process = Process::adopt(&paths.run, id.pid, id.start_time)?;
    let vmm = Vmm::new(&entry.id, &paths);
    match vmm.state().await {
        Ok(state) => {
            let mut images = entry.images.lock().await;
            for extent in state.extents {
                if extent.bay() == vm_spec::proto::Bay::ReadOnly {
                    images.insert(extent.name.clone(), extent);
                }
            }
        }
        Err(error) => {
            tracing::warn!(sandbox = entry.id, %error, "its VMM lives but does not answer; ending it");
            process.kill_and_wait(inner.config.timeouts.vmm_exit).await;
            return None;
        }
    }
    tracing::info!(
        sandbox = entry.id,
        pid = id.pid,
        "adopted a running virtual machine"
    );
    Some(Arc::new(Live::new(&entry.id, process, vmm, paths)))
}

/// Undoes containers that were half made or half removed. With a VM this needs
/// its agent, so it goes on by itself.
async fn recover_containers(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    for half in entry.containers() {
        let state: Container = half.record.get();
        if matches!(
            state.state,
            ContainerState::Creating | ContainerState::Removing
        ) {
            let (inner, entry) = (Arc::clone(inner), Arc::clone(entry));
            tokio::spawn(async move {
                if let Err(error) = container::forget(&inner, &entry, &half).await {
                    tracing::error!(container = half.id, %error, "a half-made container stays");
                }
            });
        }
    }
    Ok(())
}
