//! Why a call on a sandbox or container failed: the caller's fault, the guest's
//! or the host's.

use std::io;
use std::path::PathBuf;
use vm_launcher::Code;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Part of the request is wrong.
    #[error("{field}: {message}")]
    Invalid {
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// No sandbox has that id.
    #[error("no sandbox has the id {0}")]
    NoSuchSandbox(String),
    /// No container has that id.
    #[error("no container has the id {0}")]
    NoSuchContainer(String),
    /// A sandbox or container of that name or id exists.
    #[error("{name} exists already (id {id})")]
    Exists {
        /// What was asked for.
        name: String,
        /// Id of what has it.
        id: String,
    },
    /// Right request, wrong moment.
    #[error("{id} is {state}; {wanted} was expected")]
    WrongState {
        /// The sandbox or container.
        id: String,
        /// Its state.
        state: String,
        /// The state it should have.
        wanted: &'static str,
    },
    /// The call was ended by a stop or removal of the same sandbox.
    #[error("sandbox {0} was stopped while it was being made")]
    Cancelled(String),
    /// No local image is called that.
    #[error("image {image}: {message}")]
    Image {
        /// As it was asked for.
        image: String,
        /// What the image store said.
        message: String,
    },
    /// The VMM could not be started, reached, or refused a call.
    #[error("the virtual machine of {id} could not {what}: {message}")]
    Vmm {
        /// The sandbox.
        id: String,
        /// What was tried.
        what: &'static str,
        /// What the launcher or the VMM said.
        message: String,
    },
    /// The network could not be decided, made or taken away.
    #[error("the network of {id} could not {what}")]
    Network {
        /// The sandbox.
        id: String,
        /// What was tried.
        what: &'static str,
        /// What is missing or failed.
        #[source]
        source: Box<pod_network::NetworkError>,
    },
    /// The VM ended.
    #[error("the virtual machine of {id} ended: {cause}")]
    VmDied {
        /// The sandbox.
        id: String,
        /// What is known of the cause.
        cause: String,
    },
    /// The daemon was started anew, and does not know yet whether the VM lives.
    #[error(
        "the daemon was started anew, and the virtual machine of {id} has not answered it within {seconds} s; try again soon: one that stays silent is ended"
    )]
    Recovering {
        /// The sandbox.
        id: String,
        /// How long the call has waited.
        seconds: u64,
    },
    /// The agent in the guest did not answer in time.
    #[error(
        "the agent in the guest of {id} did not {what} within {seconds} s; its kernel's last words: {last_words}"
    )]
    AgentTimeout {
        /// The sandbox.
        id: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
        /// The end of the guest's kernel log.
        last_words: String,
    },
    /// A command ran for longer than it was given; it was killed.
    #[error("the command {command:?} in container {id} did not end within {} s and was killed", timeout.as_secs_f64())]
    ExecTimeout {
        /// The container.
        id: String,
        /// The command's program.
        command: String,
        /// What it was given.
        timeout: std::time::Duration,
    },
    /// The agent refused a call.
    #[error("the agent in the guest of {id} could not {what}: {message}")]
    Guest {
        /// The sandbox or container.
        id: String,
        /// What was tried.
        what: &'static str,
        /// What kind of fault it is.
        code: Code,
        /// What the agent said, its remedy included.
        message: String,
    },
    /// Making or copying a file failed.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A block volume cannot be had now.
    #[error("the volume {volume}: {problem}")]
    Volume {
        /// Its name.
        volume: String,
        /// Why, and what to do about it.
        problem: String,
    },
    /// The scratch disk's file system could not be made.
    #[error("mkfs.ext4 could not make the scratch disk {path}: {message}")]
    Mkfs {
        /// The template.
        path: PathBuf,
        /// What it said, or how to get it.
        message: String,
    },
    /// The directory for sockets is too long for a unix socket's address.
    #[error(
        "the run directory {path} is too long: its sockets' paths would have {bytes} bytes, and the system takes at most 107; choose a shorter --run"
    )]
    RunDirTooLong {
        /// The run directory.
        path: PathBuf,
        /// Bytes of the longest socket path.
        bytes: usize,
    },
    /// The record could not be read or written.
    #[error("the record of {id} could not be kept: {message}")]
    State {
        /// The sandbox or container, or "(all)".
        id: String,
        /// What the store said.
        message: String,
    },
    /// A task of this daemon died.
    #[error("a task of the daemon died while it worked on {0}; look at the daemon's log")]
    TaskDied(String),
}

impl SandboxError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            what,
            path: path.into(),
            source,
        }
    }

    /// Trying the same again may help: nothing is wrong with the request.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Vmm { .. }
                | Self::Network { .. }
                | Self::VmDied { .. }
                | Self::Recovering { .. }
                | Self::AgentTimeout { .. }
                | Self::File { .. }
                | Self::State { .. }
                | Self::TaskDied(_)
        )
    }
}

/// An error and all its causes in one line, each said once: as logs, records and
/// answers to callers tell it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
