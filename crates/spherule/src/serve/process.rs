//! The daemon as a service of the node: what its service manager hears.

use sd_notify::NotifyState;
use tracing::warn;

/// Tells the service manager that started us, if one did, that both sockets answer
/// (sd_notify(3), `Type=notify`).
pub(super) fn tell_ready() {
    tell(NotifyState::Ready);
}

/// Tells it that we end on purpose.
pub(super) fn tell_stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager at NOTIFY_SOCKET cannot be told");
    }
}
