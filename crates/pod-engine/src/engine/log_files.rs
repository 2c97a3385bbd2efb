//! Where the output of containers lies.

use crate::plan;
use crate::record::{ContainerState, ContainerStatus, Pod};
use std::path::{Path, PathBuf};

/// The output of one instance of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// In the CRI log format. May not exist yet, or not at all if the instance
    /// never started.
    pub path: PathBuf,
    /// Nothing will be added to it any more.
    pub complete: bool,
}

/// The output of a container so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFiles {
    /// One per instance, in order.
    pub files: Vec<LogFile>,
    /// No file will be added any more, and all are complete.
    pub finished: bool,
}

/// The files of one container of `pod`.
pub(super) fn log_files(pod: &Pod, status: &ContainerStatus, dir: &Path) -> LogFiles {
    let over = pod.phase.is_final();
    let files = (0..status.instances)
        .map(|instance| LogFile {
            path: plan::log_file(dir, &status.name, instance),
            complete: over || instance < status.ended,
        })
        .collect();
    // An init container that has ended runs again if the VM dies: new files may
    // come until the pod is over, but whoever follows should not wait for that.
    LogFiles {
        files,
        finished: over || status.state == ContainerState::Terminated,
    }
}
