//! What a starting daemon does with the records of the one before it: adopts
//! VMs that live, settles those that died, undoes what was half made, removes
//! what belongs to no record.
//!
//! A task a sandbox, which the start waits for a moment only: a VMM that does not
//! answer, or a CNI plugin that hangs, holds up its own sandbox and nothing else.
//! Until it is known what became of a VM, calls that need it wait ([`Recovering`]);
//! the agent in a guest is not waited for at all (its watcher does).

use crate::error::{SandboxError, chain};
use crate::live::Live;
use crate::record::{Container, ContainerState, Sandbox, SandboxState, Step, VmmId};
use crate::recorded::Recorded;
use crate::registry::{ContainerEntry, Entry, Recovering};
use crate::vmm::{Process, Vmm};
use crate::{Inner, container, death, network, orphans, remove, undo, volumes, watch};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Sandboxes that CNI plugins are run for at a time.
const PLUGINS_AT_ONCE: usize = 16;
/// How long the start waits for all of it. Where nothing hangs it is done by then, and
/// nothing of the daemon before is left when calls are served.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a VMM that was found may take to say its state. It answers at once
/// however slow its guest is, so one that does not is of no use.
const ADOPTION_LIMIT: Duration = Duration::from_secs(20);

/// Brings records and world in line, or begins to. A record that cannot be brought in
/// line is kept and said; the others are not held up by it.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<(), SandboxError> {
    load(inner)?;
    let entries = inner.registry.list();
    // While nobody makes anything: what has no record now is nobody's.
    let known: BTreeSet<String> = entries.iter().map(|e| e.id.clone()).collect();
    let config = &inner.config;
    orphans::sweep(&config.root, &config.run, &known, config.timeouts.vmm_exit).await;
    let strays = network::strays(inner).await;

    let turns = Arc::new(Semaphore::new(PLUGINS_AT_ONCE));
    let mut tasks = JoinSet::new();
    for entry in entries {
        let recovering = Recovering::begin(&entry);
        let (inner, turns) = (Arc::clone(inner), Arc::clone(&turns));
        tasks.spawn(async move {
            if let Err(error) = recover_sandbox(&inner, &entry, recovering, turns).await {
                tracing::error!(sandbox = entry.id, error = %chain(&error), "cannot be recovered; remove it");
            }
        });
    }
    for id in strays {
        let (inner, turns) = (Arc::clone(inner), Arc::clone(&turns));
        tasks.spawn(async move {
            let _turn = turns.acquire().await;
            network::remove_stray(&inner, &id).await;
        });
    }
    let garbage = Arc::clone(inner);
    let all = tokio::spawn(async move {
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a sandbox's recovery died; remove the sandbox");
            }
        }
        network::collect_garbage(&garbage).await;
    });
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        tracing::warn!(
            "not all sandboxes are recovered yet (a VMM or a CNI plugin that hangs?); \
             that goes on beside the calls"
        );
    }
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

async fn recover_sandbox(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    recovering: Recovering,
    turns: Arc<Semaphore>,
) -> Result<(), SandboxError> {
    // What would change the sandbox waits for all of this.
    let _operation = entry.operation.lock().await;
    let sandbox: Sandbox = entry.record.get();
    volumes::wipe_half_formatted(&sandbox).await;
    if sandbox.state == SandboxState::Ready {
        match adopt(inner, entry, &sandbox).await {
            Ok(live) => {
                entry.set_live(Some(Arc::clone(&live)));
                watch::spawn_adopted(inner, entry, &live);
                volumes::recover(inner, entry, &live);
                check_network(inner, entry, turns);
                recover_containers(inner, entry);
                return Ok(());
            }
            Err(cause) => watch::record_end(inner, entry, &cause, false).await,
        }
    }
    recover_containers(inner, entry);
    drop(recovering);
    let _turn = turns.acquire().await;
    match sandbox.state {
        SandboxState::Creating => {
            tracing::info!(sandbox = entry.id, "undoing a half-made sandbox");
            undo::abandon(inner, entry, "the daemon ended while it was made").await;
            Ok(())
        }
        SandboxState::Removing => remove::finish(inner, entry).await,
        // What its VM has used; its logs stay.
        SandboxState::Ready | SandboxState::NotReady => {
            undo::undo_sandbox(inner, entry, undo::Keep::Logs).await
        }
    }
}

/// Has plugins look at the network of a VM that lives; not waited for.
fn check_network(inner: &Arc<Inner>, entry: &Arc<Entry>, turns: Arc<Semaphore>) {
    let (inner, entry) = (Arc::clone(inner), Arc::clone(entry));
    tokio::spawn(async move {
        let _turn = turns.acquire().await;
        network::check(&inner, &entry).await;
    });
}

/// The sandbox's VM, if it still lives and answers; otherwise why it has none.
async fn adopt(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    sandbox: &Sandbox,
) -> Result<Arc<Live>, String> {
    let paths = inner.config.paths(&entry.id);
    let id = sandbox.steps.iter().find_map(|step| match step {
        Step::Vmm(id) => *id,
        _ => None,
    });
    let lives = |id: VmmId| Process::adopt(&paths.run, id.pid, id.start_time);
    let Some(process) = id.and_then(lives) else {
        return Err(death::find(&paths).cause);
    };
    let vmm = Vmm::new(&entry.id, &paths);
    let state = match tokio::time::timeout(ADOPTION_LIMIT, vmm.state()).await {
        Ok(Ok(state)) => state,
        failed => {
            let why = match failed {
                Ok(Err(error)) => chain(&error),
                _ => format!("no answer within {} s", ADOPTION_LIMIT.as_secs()),
            };
            process.kill_and_wait(inner.config.timeouts.vmm_exit).await;
            return Err(format!(
                "its spherule-vmm process did not answer the daemon that was started anew, \
                 and was ended: {why}"
            ));
        }
    };
    let mut images = entry.images.lock().await;
    for extent in state.extents {
        if extent.bay() == vm_spec::proto::Bay::ReadOnly {
            images.insert(extent.name.clone(), extent);
        }
    }
    let mut shares = entry.shares.lock().await;
    shares.extend(state.shares.into_iter().map(|s| (s.name, s.read_only)));
    let pid = process.pid();
    tracing::info!(sandbox = entry.id, pid, "adopted a running virtual machine");
    Ok(Arc::new(Live::new(&entry.id, process, vmm, paths)))
}

/// Undoes containers that were half made or half removed. With a VM this needs
/// its agent, so it goes on by itself.
fn recover_containers(inner: &Arc<Inner>, entry: &Arc<Entry>) {
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
}
