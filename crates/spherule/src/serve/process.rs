//! The daemon as a process of the node: its descriptors, and what its service manager
//! hears.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tracing::warn;

/// Most descriptors that are asked for. What the daemon starts may have as many, and
/// some programs close all that there could be.
const DESCRIPTORS: u64 = 1 << 20;

/// Lets the daemon have as many descriptors as it may: a pod takes four of the usual
/// 1024, each session and forwarded connection some more.
pub(super) fn raise_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, ?current, "cannot raise the limit of descriptors");
    }
}

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
