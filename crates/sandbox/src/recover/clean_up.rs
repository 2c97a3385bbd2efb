//! Work of a start that runs what may hang, CNI plugins above all.

use super::AT_ONCE;
use crate::Inner;
use crate::error::{SandboxError, chain};
use crate::registry::Entry;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long the start waits for all such work together. Without a plugin that hangs
/// it is done by then, and nothing of the daemon before is left when calls are
/// served.
const PATIENCE: Duration = Duration::from_secs(5);

/// Work that is begun by the start and that it waits for a while, not longer.
#[derive(Debug, Clone)]
pub(super) struct CleanUp {
    until: Instant,
    turns: Arc<Semaphore>,
}

impl CleanUp {
    /// The wait begins.
    pub(super) fn begin() -> Self {
        Self {
            until: Instant::now() + PATIENCE,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Begins `work`, of which a few are done at a time, and does not wait for it.
    pub(super) fn begin_beside(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let turns = Arc::clone(&self.turns);
        tokio::spawn(async move {
            let _turn = turns.acquire().await;
            work.await;
        })
    }

    /// Begins `work` for a sandbox; returns when it is done or the start has waited
    /// long enough.
    pub(super) async fn run(&self, id: &str, work: impl Future<Output = ()> + Send + 'static) {
        let task = self.begin_beside(work);
        match tokio::time::timeout_at(self.until, task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(sandbox = id, %error, "cleaning up died"),
            Err(_) => tracing::warn!(
                sandbox = id,
                "cleaning up takes long (a CNI plugin that hangs?); it goes on by itself"
            ),
        }
    }

    /// [`Self::run`] as the sandbox's only operation; not for one that was removed
    /// before its turn came.
    pub(super) async fn run_on(
        &self,
        inner: &Arc<Inner>,
        entry: &Arc<Entry>,
        work: impl Future<Output = Result<(), SandboxError>> + Send + 'static,
    ) {
        let (inner, of) = (Arc::clone(inner), Arc::clone(entry));
        let work = async move {
            let _operation = of.operation.lock().await;
            if inner.registry.get(&of.id).is_err() {
                return;
            }
            if let Err(error) = work.await {
                tracing::error!(sandbox = of.id, error = %chain(&error), "cannot be recovered; remove it");
            }
        };
        self.run(&entry.id, work).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test(start_paused = true)]
    async fn work_that_hangs_is_left_to_itself_and_holds_up_no_other() {
        let clean_up = CleanUp::begin();
        let (open, gate) = oneshot::channel::<()>();
        let (done, finished) = oneshot::channel();
        let hangs = async move {
            let _ = gate.await;
            let _ = done.send(());
        };
        clean_up.run("hangs", hangs).await;
        let (told, other) = oneshot::channel();
        let works = async move {
            let _ = told.send(());
        };
        clean_up.run("works", works).await;
        other.await.expect("done, though the wait is over");
        drop(open);
        finished.await.expect("it went on");
    }
}
