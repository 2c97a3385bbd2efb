//! Why a VMM could not be started, reached, or do what was asked.

use std::io;
use std::path::PathBuf;
use vm_spec::proto::VmExit;
use wire::WireError;
use wire::proto::error::Code;

/// Why a process could not be started or found.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be run.
    #[error("{} cannot be started; install spherule again, or name its place in the configuration", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// `spherule-vmm probe` failed.
    #[error("{} probe failed: {detail}", program.display())]
    Probe {
        /// The program.
        program: PathBuf,
        /// What it said.
        detail: String,
    },
    /// The process of the record has ended; its number may be another's now.
    #[error("the VMM process {pid} is gone")]
    Gone {
        /// The process id of the record.
        pid: u32,
    },
    /// The host refused to tell about a process.
    #[error("process {pid} cannot be looked at")]
    Inspect {
        /// The process.
        pid: u32,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// Why a call on a VMM failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The process refused the call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The VM has ended, and the process with it.
    #[error("the VM has ended ({}): {}", .0.reason().as_str_name(), .0.message)]
    Ended(VmExit),
    /// The process died before it could be reached.
    #[error("the VMM process died: {log}")]
    Died {
        /// The end of its log.
        log: String,
    },
    /// Nobody listens on the control socket.
    #[error("no VMM can be reached in {}", dir.display())]
    Unreachable {
        /// The VM's directory.
        dir: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the VMM broke")]
    Wire(#[from] WireError),
    /// The process answered with something else.
    #[error("the VMM answered {0} with something else; install matching versions")]
    Unexpected(&'static str),
}

impl ClientError {
    /// The code of a refused call.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call(error) => Some(error.code),
            _ => None,
        }
    }
}

/// What the VMM said about a call that it refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
pub struct CallError {
    /// Kind of the error.
    pub code: Code,
    /// What failed and why.
    pub message: String,
    /// The part of the request at fault, empty if none.
    pub field: String,
    /// What to do about it, empty if nothing is known.
    pub remedy: String,
}

impl From<wire::proto::Error> for CallError {
    fn from(error: wire::proto::Error) -> Self {
        Self {
            code: error.code(),
            message: error.message,
            field: error.field,
            remedy: error.remedy,
        }
    }
}
