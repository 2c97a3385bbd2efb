//! How many descriptors this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Most descriptors that are asked for. What a process starts may have as many, and
/// some programs close all that there could be.
const DESCRIPTORS: u64 = 1 << 20;

/// Lets this process have as many as it may: of the usual 1024 a pod takes four of the
/// daemon's, each session and forwarded connection some more.
pub(crate) fn raise() {
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
