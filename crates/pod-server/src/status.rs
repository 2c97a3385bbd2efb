//! Errors of the engine and the store as gRPC status codes.

use image_store::{ImageError, PullError};
use pod_engine::{EngineError, ErrorKind};
use sandbox::SandboxError;
use sandbox::chain;
use std::error::Error;
use tonic::{Code, Status};

/// The status of a refused or failed engine call.
pub(crate) fn of_engine(error: &EngineError) -> Status {
    let code = match error.kind() {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Internal => Code::Internal,
    };
    with_code(code, error)
}

/// The status of a failed call on a sandbox that the engine does not know.
pub(crate) fn of_sandbox(error: &SandboxError) -> Status {
    let code = match error {
        SandboxError::NoSuchSandbox(_) | SandboxError::NoSuchContainer(_) => Code::NotFound,
        SandboxError::WrongState { .. } => Code::FailedPrecondition,
        SandboxError::Invalid { .. } => Code::InvalidArgument,
        // Of the guest, not the daemon's fault.
        SandboxError::Guest { .. }
        | SandboxError::VmDied { .. }
        | SandboxError::Recovering { .. } => Code::Unavailable,
        _ => Code::Internal,
    };
    with_code(code, error)
}

/// The status of a refused or failed call of the image store.
pub(crate) fn of_image(error: &ImageError) -> Status {
    let code = match error {
        ImageError::Shared(shared) => return of_image(shared),
        ImageError::Pull(pull) => match **pull {
            PullError::NoRegistry { .. } => Code::InvalidArgument,
            PullError::Hosts { .. } | PullError::NoHost { .. } | PullError::CredentialsFile(_) => {
                Code::FailedPrecondition
            }
            PullError::GivenUp => Code::Cancelled,
            PullError::Registry { .. } => Code::Unavailable,
        },
        ImageError::NotFound { .. } => Code::NotFound,
        ImageError::InUse { .. } => Code::FailedPrecondition,
        ImageError::Reference(_)
        | ImageError::Ambiguous { .. }
        | ImageError::Archive(_)
        | ImageError::Manifest(_)
        | ImageError::Layer { .. }
        | ImageError::DiffId { .. }
        | ImageError::Content { .. }
        | ImageError::TooLarge { .. } => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let code = if error.is_no_space() {
        Code::ResourceExhausted
    } else {
        code
    };
    with_code(code, error)
}

/// A status with this code; its text is the error's and its causes'. The
/// daemon's own faults are logged, here and nowhere else.
pub(crate) fn with_code(code: Code, error: &dyn Error) -> Status {
    let text = chain(error);
    if code == Code::Internal {
        tracing::error!("{text}");
    }
    Status::new(code, text)
}
