//! How a command ended, as clients are told on the error stream: a metav1.Status
//! since version 4 of the protocol, plain text before.

use serde::Serialize;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// With exit code 0, or without one.
    Success,
    /// With this exit code.
    Exit(i32),
    /// It could not be run or served to its end.
    Failure(String),
}

/// How it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusForm {
    /// metav1.Status as JSON.
    Object,
    /// The message of a failure; nothing otherwise.
    Text,
}

#[derive(Debug, Default, Serialize)]
struct Status {
    metadata: Metadata,
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Debug, Default, Serialize)]
struct Metadata {}

#[derive(Debug, Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Debug, Serialize)]
struct Cause {
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    message: String,
}

impl End {
    /// What is written to the error stream.
    pub(crate) fn tell(self, form: StatusForm) -> Vec<u8> {
        let status = self.status();
        match form {
            // Serializing to memory does not fail.
            StatusForm::Object => serde_json::to_vec(&status).unwrap_or_default(),
            StatusForm::Text => status.message.into_bytes(),
        }
    }

    fn status(self) -> Status {
        let (message, reason, cause, code) = match self {
            Self::Success | Self::Exit(0) => {
                return Status {
                    status: "Success",
                    ..Status::default()
                };
            }
            Self::Exit(exit) => (
                format!("command terminated with non-zero exit code: {exit}"),
                "NonZeroExitCode",
                Cause {
                    reason: "ExitCode",
                    message: exit.to_string(),
                },
                None,
            ),
            Self::Failure(message) => (
                format!("Internal error occurred: {message}"),
                "InternalError",
                Cause {
                    reason: "",
                    message,
                },
                Some(500),
            ),
        };
        Status {
            status: "Failure",
            message,
            reason,
            details: Some(Details { causes: [cause] }),
            code,
            ..Status::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(end: End) -> Value {
        serde_json::from_slice(&end.tell(StatusForm::Object)).unwrap()
    }

    #[test]
    fn status_objects_are_what_clients_parse() {
        let success = json!({"metadata": {}, "status": "Success"});
        assert_eq!(object(End::Success), success);
        assert_eq!(object(End::Exit(0)), success);
        let exit = json!({
            "metadata": {},
            "status": "Failure",
            "message": "command terminated with non-zero exit code: 7",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
        });
        assert_eq!(object(End::Exit(7)), exit);
        let failure = object(End::Failure("no such container".into()));
        assert_eq!(failure["reason"], "InternalError");
        assert_eq!(failure["code"], 500);
        assert_eq!(
            failure["details"]["causes"][0]["message"],
            "no such container"
        );
    }

    #[test]
    fn text_is_told_of_failures_only() {
        assert!(End::Success.tell(StatusForm::Text).is_empty());
        let text = End::Exit(7).tell(StatusForm::Text);
        assert_eq!(text, b"command terminated with non-zero exit code: 7");
    }
}
