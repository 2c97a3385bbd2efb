//! Removing a sandbox: its VM, its containers, its files, its record.

use crate::error::SandboxError;
use crate::record::SandboxState;
use crate::registry::Entry;
use crate::undo::{Keep, undo_sandbox};
use crate::{Inner, stop};
use std::sync::Arc;

/// Removes all of it. What fails can be tried again.
pub(crate) async fn remove(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    entry.recovered().await;
    entry.cancel.send_replace(true);
    let _operation = entry.operation.lock().await;
    if inner.registry.get(&entry.id).is_err() {
        // It was being made, and whoever made it has undone it.
        return Ok(());
    }
    stop::stop_locked(inner, entry).await?;
    finish(inner, entry).await
}

/// The removal of what has no VM any more, from any point of it.
pub(crate) async fn finish(inner: &Arc<Inner>, entry: &Arc<Entry>) -> Result<(), SandboxError> {
    let reason = entry.record.read(|s| s.reason.clone());
    inner
        .set_sandbox_state(entry, SandboxState::Removing, reason)
        .await?;
    undo_sandbox(inner, entry, Keep::Nothing).await?;
    inner.forget_sandbox(entry).await
}
