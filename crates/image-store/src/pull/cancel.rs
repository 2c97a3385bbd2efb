//! How a pull learns that nobody waits for it any more.

use tokio::sync::watch;

/// Tells it.
pub(super) struct Canceller(watch::Sender<bool>);

/// Is told.
#[derive(Debug, Clone)]
pub(super) struct Cancelled(watch::Receiver<bool>);

/// The two ends.
pub(super) fn channel() -> (Canceller, Cancelled) {
    let (sender, receiver) = watch::channel(false);
    (Canceller(sender), Cancelled(receiver))
}

impl Canceller {
    pub(super) fn cancel(&self) {
        self.0.send_replace(true);
    }
}

impl Cancelled {
    /// Returns once it is cancelled; never, if it cannot be any more.
    pub(super) async fn wait(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|cancelled| *cancelled).await.is_err() {
            std::future::pending().await
        }
    }

    pub(super) fn is(&self) -> bool {
        *self.0.borrow()
    }
}
