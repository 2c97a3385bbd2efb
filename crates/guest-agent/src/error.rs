//! Why the agent refuses or fails a call, and how that looks on the wire.
//!
//! Every failure ends in an answer to the host, so one type carries what such an
//! answer needs; only this file knows the wire's codes.

use rustix::io::Errno;
use wire::proto::{Error as WireAnswer, error::Code};

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The request is wrong in `field`.
    #[error("{problem}")]
    Invalid {
        /// Path of the field in the request.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What the request names is not there.
    #[error("{what} does not exist")]
    NotFound {
        /// Kind and name.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// What the request makes is there already.
    #[error("{what} exists already")]
    Exists {
        /// Kind and name.
        what: String,
    },
    /// A right request at the wrong moment.
    #[error("{problem}")]
    Precondition {
        /// What is in the way.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A limit of this guest is reached.
    #[error("{problem}")]
    Exhausted {
        /// Which limit.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The program of a container cannot be started.
    #[error("exec: \"{program}\": {problem}")]
    Exec {
        /// args[0]
        program: String,
        /// Why, in the words other runtimes use.
        problem: String,
    },
    /// The kernel refused something.
    #[error("{doing} failed: {source}")]
    System {
        /// What was being done, to what.
        doing: String,
        /// The kernel's reason.
        source: Errno,
        /// What to do about it, empty if nothing is known.
        remedy: &'static str,
    },
    /// Reported by a container's own first process, in the wire's words.
    #[error("{}", .0.message)]
    Reported(WireAnswer),
}

impl AgentError {
    /// A wrong field.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// This failure as the wire carries it.
    pub(crate) fn into_wire(self) -> WireAnswer {
        let message = self.to_string();
        let (code, field, remedy) = match self {
            Self::Invalid { field, .. } => (Code::InvalidArgument, field, ""),
            Self::NotFound { remedy, .. } => (Code::NotFound, String::new(), remedy),
            Self::Exists { .. } => (Code::AlreadyExists, String::new(), ""),
            Self::Precondition { remedy, .. } => (Code::FailedPrecondition, String::new(), remedy),
            Self::Exhausted { remedy, .. } => (Code::ResourceExhausted, String::new(), remedy),
            Self::Exec { .. } => (
                Code::InvalidArgument,
                "process.args[0]".to_owned(),
                "check the container's command against what its image contains",
            ),
            Self::System { source, remedy, .. } => {
                let code = match source {
                    Errno::NOSPC | Errno::NOMEM | Errno::DQUOT | Errno::NFILE | Errno::MFILE => {
                        Code::ResourceExhausted
                    }
                    _ => Code::Internal,
                };
                (code, String::new(), remedy)
            }
            Self::Reported(answer) => return answer,
        };
        WireAnswer {
            code: code.into(),
            message,
            field,
            remedy: remedy.to_owned(),
        }
    }
}

/// Names what was being done when a system call failed.
pub(crate) trait Doing<T> {
    /// `doing` is only made where there is a failure.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, AgentError>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, AgentError> {
        self.map_err(|source| AgentError::System {
            doing: doing(),
            source,
            remedy: "",
        })
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, AgentError> {
        self.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            .doing(doing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let code = |errno| {
            Err::<(), _>(errno)
                .doing(|| "writing x".into())
                .unwrap_err()
                .into_wire()
                .code
        };
        assert_eq!(code(Errno::NOSPC), i32::from(Code::ResourceExhausted));
        assert_eq!(code(Errno::IO), i32::from(Code::Internal));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let answer = AgentError::invalid("process.cwd", "must be absolute").into_wire();
        assert_eq!(answer.field, "process.cwd");
        assert_eq!(answer.message, "must be absolute");
    }
}
