//! What a starting daemon does with the records of the one before it: adopts
//! VMs that live, settles those that died, undoes what was half made, removes
//! what belongs to no record. Many at a time: a VMM that does not answer holds up
//! no other, and the agent in a guest is not waited for at all (its watcher does).

use crate::error::{SandboxError, chain};
use crate::live::Live;
use crate::record::{Container, ContainerState, Sandbox, SandboxState, Step, VmmId};
use crate::recorded::Recorded;
use crate::registry::{ContainerEntry, Entry};
use crate::vmm::{Process, Vmm};
use crate::{Inner, container, death, network, orphans, remove, undo, volumes, watch};
use clean_up::CleanUp;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};

mod clean_up;

/// Sandboxes that are recovered at a time: most of it is waiting.
const AT_ONCE: usize = 16;
/// How long a VMM that was found may take to say its state. It answers at once
/// however slow its guest is, so one that does not is of no use.
const ADOPTION_LIMIT: Duration = Duration::from_secs(20);

/// Brings records and world in line. A record that cannot be brought in line is
/// kept and said; the others are not held up by it.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<(), SandboxError> {
    load(inner)?;
    let clean_up = CleanUp::begin();
    side_by_side(inner.registry.list(), |entry| {
        let (inner, clean_up) = (Arc::clone(inner), clean_up.clone());
        async move {
            if let Err(error) = recover_sandbox(&inner, &entry, &clean_up).await {
                tracing::error!(sandbox = entry.id, error = %chain(&error), "cannot be recovered; remove it");
            }
        }
    })
    .await;
    side_by_side(network::strays(inner).await, |id| {
        let (inner, clean_up) = (Arc::clone(inner), clean_up.clone());
        async move {
            let stray = id.clone();
            let removal = async move { network::remove_stray(&inner, &stray).await };
            clean_up.run(&id, removal).await;
        }
    })
    .await;
    let collecting = Arc::clone(inner);
    clean_up
        .run("(all)", async move {
            network::collect_garbage(&collecting).await
        })
        .await;
    let known: BTreeSet<String> = inner.registry.list().iter().map(|e| e.id.clone()).collect();
    let config = &inner.config;
    orphans::sweep(&config.root, &config.run, &known, config.timeouts.vmm_exit).await;
    Ok(())
}

/// Does `work` on every item, on [`AT_ONCE`] of them at a time; returns when all is
/// done. Work that panics ends alone.
async fn side_by_side<T, F: Future<Output = ()> + Send + 'static>(
    items: Vec<T>,
    work: impl Fn(T) -> F,
) {
    let mut tasks = JoinSet::new();
    for item in items {
        if tasks.len() >= AT_ONCE {
            finished(tasks.join_next().await);
        }
        tasks.spawn(work(item));
    }
    while let Some(result) = tasks.join_next().await {
        finished(Some(result));
    }
}

fn finished(result: Option<Result<(), JoinError>>) {
    if let Some(Err(error)) = result {
        tracing::error!(%error, "a sandbox's recovery died; remove the sandbox");
    }
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

async fn recover_sandbox(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    clean_up: &CleanUp,
) -> Result<(), SandboxError> {
    let sandbox: Sandbox = entry.record.get();
    volumes::wipe_half_formatted(&sandbox).await;
    let (to_clean, of) = (Arc::clone(inner), Arc::clone(entry));
    match sandbox.state {
        SandboxState::Creating => {
            tracing::info!(sandbox = entry.id, "undoing a half-made sandbox");
            let undo = async move {
                undo::undo_sandbox(&to_clean, &of, undo::Keep::Nothing).await?;
                to_clean.forget_sandbox(&of).await
            };
            clean_up.run_on(inner, entry, undo).await;
            Ok(())
        }
        SandboxState::Removing => {
            let removal = async move { remove::finish(&to_clean, &of).await };
            clean_up.run_on(inner, entry, removal).await;
            Ok(())
        }
        SandboxState::NotReady => {
            recover_containers(inner, entry).await?;
            free(inner, entry, clean_up).await;
            Ok(())
        }
        SandboxState::Ready => match adopt(inner, entry, &sandbox).await {
            Some(live) => {
                entry.set_live(Some(Arc::clone(&live)));
                watch::spawn_adopted(inner, entry, &live);
                let check = async move { network::check(&to_clean, &of).await };
                clean_up.begin_beside(check);
                volumes::recover(inner, entry, &live);
                recover_containers(inner, entry).await
            }
            None => {
                let cause = death::find(&inner.config.paths(&entry.id)).cause;
                let reason = watch::end_containers(inner, entry, &cause, false).await;
                free(inner, entry, clean_up).await;
                watch::announce_end(inner, entry, reason).await;
                recover_containers(inner, entry).await
            }
        },
    }
}

/// Frees what a VM that is no more has used; its logs stay.
async fn free(inner: &Arc<Inner>, entry: &Arc<Entry>, clean_up: &CleanUp) {
    let (to_clean, of) = (Arc::clone(inner), Arc::clone(entry));
    let undo = async move { undo::undo_sandbox(&to_clean, &of, undo::Keep::Logs).await };
    clean_up.run_on(inner, entry, undo).await;
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
    let asked = tokio::time::timeout(ADOPTION_LIMIT, vmm.state()).await;
    match asked.unwrap_or_else(|_| Err(silent(&entry.id))) {
        Ok(state) => {
            let mut images = entry.images.lock().await;
            for extent in state.extents {
                if extent.bay() == vm_spec::proto::Bay::ReadOnly {
                    images.insert(extent.name.clone(), extent);
                }
            }
            let mut shares = entry.shares.lock().await;
            shares.extend(state.shares.into_iter().map(|s| (s.name, s.read_only)));
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

fn silent(id: &str) -> SandboxError {
    SandboxError::Vmm {
        id: id.to_owned(),
        what: "say its state",
        message: format!("no answer within {} s", ADOPTION_LIMIT.as_secs()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Barrier;

    #[tokio::test]
    async fn as_many_as_allowed_are_worked_on_together() {
        // Nobody passes the barrier unless that many are there at once.
        let together = Arc::new(Barrier::new(AT_ONCE));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        side_by_side((0..AT_ONCE * 3).collect(), |_| {
            let (together, now, most) = (together.clone(), now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                together.wait().await;
                now.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .await;
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test]
    async fn one_that_dies_leaves_the_others_alone() {
        let done = Arc::new(AtomicUsize::new(0));
        side_by_side((0..AT_ONCE * 2).collect(), |number| {
            let done = done.clone();
            async move {
                assert_ne!(number, 3, "on purpose");
                done.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
        assert_eq!(done.load(Ordering::SeqCst), AT_ONCE * 2 - 1);
    }
}
