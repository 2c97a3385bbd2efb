//! One daemon for the tests that only run pods: a pod's name is its test's own.

use spherule_tests::Daemon;
use std::sync::{Arc, Mutex, PoisonError};

static SHARED: Mutex<Option<Arc<Daemon>>> = Mutex::new(None);

/// The daemon, started by the first test that asks.
pub(crate) fn daemon() -> anyhow::Result<Arc<Daemon>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(daemon) = &*shared {
        return Ok(daemon.clone());
    }
    let daemon = Arc::new(Daemon::start()?);
    *shared = Some(daemon.clone());
    Ok(daemon)
}

/// Ends it after the last test.
pub(crate) fn end() {
    drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
}
