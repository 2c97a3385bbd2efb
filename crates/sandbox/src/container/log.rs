//! Log rotation: a container's output goes on in a new file.

use crate::error::SandboxError;
use crate::record::ContainerState;
use crate::registry::{ContainerEntry, Entry};
use crate::vmm::open_log;

/// Opens the container's log path anew, its caller having renamed the old file,
/// and lets the VMM go on there. What it has taken so far is in the old file, what
/// comes later in the new one.
pub(crate) async fn reopen(entry: &Entry, item: &ContainerEntry) -> Result<(), SandboxError> {
    // Not while it is started: the log would be attached twice.
    let _operation = item.operation.lock().await;
    if item.state() != ContainerState::Running {
        return Err(item.wrong_state("Running"));
    }
    let live = entry.require_live()?;
    let (path, terminal) = item
        .record
        .read(|c| (c.spec.log_path.clone(), c.spec.process.terminal));
    let log = open_log(&item.id, path).await?;
    let switched = live.vmm.attach_log(&item.id, terminal, log).await;
    live.or_death(switched).await
}
