//! Why a call failed, and the gRPC code that says so. The only place with codes.

use image_store::{ImageError, PullError, RegistryError};
use pod_network::NetworkError;
pub(crate) use sandbox::chain;
use sandbox::{GuestCode, SandboxError};
use state_store::StateError;
use std::io;
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

// No catch-all: who adds a variant decides its code.
fn sandbox_code(error: &SandboxError) -> Code {
    match error {
        SandboxError::Invalid { .. } => Code::InvalidArgument,
        SandboxError::NoSuchSandbox(_)
        | SandboxError::NoSuchContainer(_)
        | SandboxError::Image { .. } => Code::NotFound,
        SandboxError::Exists { .. } => Code::AlreadyExists,
        SandboxError::WrongState { .. }
        | SandboxError::RunDirTooLong { .. }
        | SandboxError::Volume { .. } => Code::FailedPrecondition,
        SandboxError::Cancelled(_) => Code::Cancelled,
        SandboxError::AgentTimeout { .. } | SandboxError::ExecTimeout { .. } => {
            Code::DeadlineExceeded
        }
        SandboxError::Network { source, .. } => match **source {
            NetworkError::Identity { .. } => Code::InvalidArgument,
            _ => Code::Unavailable,
        },
        SandboxError::VmDied { .. } | SandboxError::Recovering { .. } => Code::Unavailable,
        SandboxError::Guest { code, .. } => guest_code(*code),
        SandboxError::File { source, .. } if is_full(source) => Code::ResourceExhausted,
        SandboxError::File { .. }
        | SandboxError::Vmm { .. }
        | SandboxError::Mkfs { .. }
        | SandboxError::State { .. }
        | SandboxError::TaskDied(_) => Code::Internal,
    }
}

/// What the agent in the guest says. Things that it misses or has already are not
/// the sandbox or container that the call is about: the records know those.
fn guest_code(code: GuestCode) -> Code {
    match code {
        GuestCode::InvalidArgument | GuestCode::NotFound => Code::InvalidArgument,
        GuestCode::FailedPrecondition => Code::FailedPrecondition,
        GuestCode::ResourceExhausted => Code::ResourceExhausted,
        GuestCode::DeadlineExceeded => Code::DeadlineExceeded,
        GuestCode::Unimplemented => Code::Unimplemented,
        GuestCode::Unavailable => Code::Unavailable,
        GuestCode::AlreadyExists | GuestCode::Internal | GuestCode::Unspecified => Code::Internal,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
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
        | ImageError::Archive(_)
        | ImageError::TooLarge { .. } => Code::FailedPrecondition,
        ImageError::Io { .. }
        | ImageError::State(_)
        | ImageError::Write(_)
        | ImageError::Thread => Code::Internal,
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
            RegistryError::Request(_)
            | RegistryError::Status { .. }
            | RegistryError::TooShort { .. } => Code::Unavailable,
        },
    }
}

impl From<CriError> for Status {
    fn from(error: CriError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: SandboxError) -> Code {
        CriError::from(error).code()
    }

    #[test]
    fn what_the_guest_refuses_is_told_from_what_it_fails_at() {
        let guest = |code| SandboxError::Guest {
            id: "c".into(),
            what: "create the container",
            code,
            message: "m".into(),
        };
        for (said, told) in [
            (GuestCode::InvalidArgument, Code::InvalidArgument),
            (GuestCode::NotFound, Code::InvalidArgument),
            (GuestCode::AlreadyExists, Code::Internal),
            (GuestCode::ResourceExhausted, Code::ResourceExhausted),
            (GuestCode::Unavailable, Code::Unavailable),
            (GuestCode::Internal, Code::Internal),
        ] {
            assert_eq!(self::code(guest(said)), told, "{said:?}");
        }
    }

    #[test]
    fn full_disk_is_told_from_a_broken_one() {
        let file = |kind: io::ErrorKind| SandboxError::File {
            what: "cannot make",
            path: "/x".into(),
            source: kind.into(),
        };
        let full = file(io::ErrorKind::StorageFull);
        assert_eq!(code(full), Code::ResourceExhausted);
        assert_eq!(code(file(io::ErrorKind::Other)), Code::Internal);
    }
}
