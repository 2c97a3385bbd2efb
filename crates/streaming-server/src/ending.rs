//! The server's own end, as its sessions see it.

use tokio::sync::watch;

/// Tells when the server is about to end, and why.
#[derive(Debug, Clone)]
pub(crate) struct Ending(watch::Receiver<Option<String>>);

impl Ending {
    /// The reason goes to the sender.
    pub(crate) fn new() -> (watch::Sender<Option<String>>, Self) {
        let (tell, told) = watch::channel(None);
        (tell, Self(told))
    }

    /// Returns with the reason once the server is to end; never where it just goes.
    pub(crate) async fn reason(&self) -> String {
        let mut told = self.0.clone();
        let reason = told.wait_for(Option::is_some).await;
        match reason.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}
