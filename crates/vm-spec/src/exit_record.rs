//! How a VM ended, as the text of `vm-exit.json`: `{"reason": "REASON_…",
//! "message": "…"}`. Fields that a reader does not know are passed over.

use crate::proto::{VmExit, vm_exit::Reason};
use serde::{Deserialize, Serialize};

/// The file's text is no exit record.
#[derive(Debug, thiserror::Error)]
#[error("not the record of a VM's exit")]
pub struct ExitRecordError(#[from] serde_json::Error);

#[derive(Serialize, Deserialize)]
struct ExitRecord {
    reason: String,
    message: String,
}

/// The text of `vm-exit.json`.
pub fn exit_to_json(exit: &VmExit) -> String {
    let record = serde_json::json!({
        "reason": exit.reason().as_str_name(),
        "message": exit.message,
    });
    format!("{record}\n")
}

/// Reads the text of `vm-exit.json`. A reason that this version does not know
/// becomes `Unspecified`; the message says it all the same.
///
/// # Errors
/// If the text is not what [`exit_to_json`] writes.
pub fn exit_from_json(text: &str) -> Result<VmExit, ExitRecordError> {
    let record: ExitRecord = serde_json::from_str(text)?;
    let reason = Reason::from_str_name(&record.reason).unwrap_or(Reason::Unspecified);
    Ok(VmExit {
        reason: reason.into(),
        message: record.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_survives_a_round_trip() {
        let exit = VmExit {
            reason: Reason::GuestPanic.into(),
            message: "Kernel panic: \"quoted\"\n".into(),
        };
        let text = exit_to_json(&exit);
        assert!(text.contains("REASON_GUEST_PANIC"), "{text}");
        assert_eq!(exit_from_json(&text).unwrap(), exit);
    }

    #[test]
    fn reason_of_a_newer_version_is_unspecified() {
        let exit = exit_from_json(r#"{"reason":"REASON_NEW","message":"m","more":1}"#).unwrap();
        assert_eq!(exit.reason(), Reason::Unspecified);
        assert_eq!(exit.message, "m");
    }

    #[test]
    fn half_a_record_is_refused() {
        assert!(exit_from_json(r#"{"reason":"REASON_KI"#).is_err());
        assert!(exit_from_json("").is_err());
    }
}
