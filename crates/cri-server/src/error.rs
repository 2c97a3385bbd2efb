//! Why a call failed, and the gRPC code that says so. The only place with codes.

use image_store::{ImageError, PullError, RegistryError};
use pod_network::NetworkError;
use sandbox::{SandboxError, chain};
use state_store::StateError;
use tonic::{Code, Status};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Part of the request is wrong.
    #[error("{field}: {message}")]
    Invalid {
        /// The field at fault, as the CRI names it.
        field: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// Nothing has that id.
    #[error("no {kind} has the id {id:?}")]
    NotFound {
        /// "sandbox", "container".
        kind: &'static str,
        /// As it was asked for.
        id: String,
    },
    /// A short id that fits several.
    #[error("{count} {kind}s have an id that begins with {prefix:?}; give more digits")]
    Ambiguous {
        /// "sandbox", "container".
        kind: &'static str,
        /// As it was asked for.
        prefix: String,
        /// How many fit.
        count: usize,
    },
    /// This server has no such call yet.
    #[error("{call} is not supported: {reason}")]
    Unimplemented {
        /// The call.
        call: &'static str,
        /// Why, and what to use instead.
        reason: &'static str,
    },
    /// Right request, wrong moment.
    #[error("{0}")]
    Precondition(String),
    /// The sandbox crate's answer.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The image store's answer.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The records of this server cannot be read or written.
    #[error("the record of events cannot be kept")]
    State(#[from] StateError),
    /// A record of this server cannot be read.
    #[error("the CRI record of {id} is damaged; remove it")]
    Record {
        /// The sandbox or container.
        id: String,
    },
    /// More streaming requests than can be kept.
    #[error(transparent)]
    Streaming(#[from] streaming_server::TooMany),
    /// A task of this daemon died.
    #[error("a task of the daemon died while it worked on {0}; look at the daemon's log")]
    TaskDied(String),
}

impl CriError {
    /// A wrong field.
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } | Self::Ambiguous { .. } => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Sandbox(error) => sandbox_code(error),
            Self::Image(error) => image_code(error),
            Self::Record { .. } => Code::DataLoss,
            Self::Streaming(_) => Code::ResourceExhausted,
            Self::State(_) | Self::TaskDied(_) => Code::Internal,
        }
    }
}

fn sandbox_code(error: &SandboxError) -> Code {
    match error {
        SandboxError::Invalid { .. } => Code::InvalidArgument,
        SandboxError::NoSuchSandbox(_)
        | SandboxError::NoSuchContainer(_)
        | SandboxError::Image { .. } => Code::NotFound,
        SandboxError::Exists { .. } => Code::AlreadyExists,
        SandboxError::WrongState { .. } => Code::FailedPrecondition,
        SandboxError::Cancelled(_) => Code::Cancelled,
        SandboxError::AgentTimeout { .. } | SandboxError::ExecTimeout { .. } => {
            Code::DeadlineExceeded
        }
        SandboxError::Network { source, .. } => match **source {
            NetworkError::Identity { .. } => Code::InvalidArgument,
            _ => Code::Unavailable,
        },
        SandboxError::VmDied { .. } => Code::Unavailable,
        _ => Code::Internal,
    }
}

fn image_code(error: &ImageError) -> Code {
    match error {
        ImageError::Reference(_) | ImageError::Ambiguous { .. } => Code::InvalidArgument,
        ImageError::NotFound { .. } => Code::NotFound,
        ImageError::InUse { .. } => Code::FailedPrecondition,
        ImageError::Shared(error) => image_code(error),
        _ if error.is_no_space() => Code::ResourceExhausted,
        ImageError::Pull(error) => pull_code(error),
        // The image is what it should not be.
        ImageError::Manifest(_)
        | ImageError::Layer { .. }
        | ImageError::DiffId { .. }
        | ImageError::Content { .. }
        | ImageError::TooLarge { .. } => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

fn pull_code(error: &PullError) -> Code {
    match error {
        PullError::NoRegistry { .. } => Code::InvalidArgument,
        PullError::Hosts { .. } | PullError::NoHost { .. } | PullError::CredentialsFile(_) => {
            Code::FailedPrecondition
        }
        PullError::GivenUp => Code::Cancelled,
        PullError::Registry { source, .. } => match &**source {
            RegistryError::NotFound => Code::NotFound,
            RegistryError::Unauthorized { .. } | RegistryError::Challenge { .. } => {
                Code::Unauthenticated
            }
            RegistryError::Digest { .. }
            | RegistryError::TooLong { .. }
            | RegistryError::Redirect(_) => Code::FailedPrecondition,
            _ => Code::Unavailable,
        },
    }
}

impl From<CriError> for Status {
    fn from(error: CriError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}
