//! Why a VM ended: its VMM's own account, otherwise what its logs say last.

use crate::config::Paths;
use crate::guest::printable;
use guest_api::proto::ExitStatus;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use vm_spec::proto::vm_exit::Reason;

/// Bytes of a file's end that are looked at.
const TAIL: u64 = 16 << 10;
/// Lines of a log that are told.
const LOG_LINES: usize = 3;

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    /// A sentence without a full stop.
    pub(crate) cause: String,
    /// The guest or its caller ended it in order.
    pub(crate) orderly: bool,
}

/// Looks for the cause of the death of the VM with these directories.
pub(crate) fn find(paths: &Paths) -> Death {
    let exit = tail(&paths.exit()).and_then(|text| vm_spec::exit_from_json(&text).ok());
    if let Some(exit) = exit {
        let orderly = matches!(exit.reason(), Reason::GuestShutdown | Reason::Killed);
        let what = match exit.reason() {
            Reason::GuestShutdown => "the guest powered off",
            Reason::GuestPanic => "the guest kernel panicked",
            Reason::Killed => "its spherule-vmm process was told to end it",
            Reason::EngineFailure => "the engine could not go on",
            Reason::Unspecified => "for a reason unknown to this version",
        };
        let message = printable(exit.message.trim());
        let cause = if message.is_empty() || exit.reason() == Reason::GuestShutdown {
            what.to_owned()
        } else {
            format!("{what}: {message}")
        };
        return Death { cause, orderly };
    }
    if let Some(line) = tail(&paths.kernel_log()).and_then(|text| panic_line(&text)) {
        let cause = format!("the guest kernel panicked: {line}");
        return Death {
            cause,
            orderly: false,
        };
    }
    let said = tail(&paths.vmm_log())
        .map(|text| last_lines(&text))
        .unwrap_or_default();
    let mut cause = "its spherule-vmm process was killed or crashed without a record \
                     (kill -9, or the host's OOM killer: see dmesg)"
        .to_owned();
    if !said.is_empty() {
        cause.push_str("; its log ends with: ");
        cause.push_str(&said);
    }
    Death {
        cause,
        orderly: false,
    }
}

/// The end of the guest's kernel log: all that a guest which never answered said.
/// Told in full, since the log goes with a sandbox that never was.
pub(crate) fn last_words(paths: &Paths) -> String {
    let said = tail(&paths.kernel_log()).map(|text| last_lines(&text));
    said.filter(|said| !said.is_empty())
        .unwrap_or_else(|| "none (it printed nothing)".into())
}

/// How containers ended, by their ids, as the guest's kernel log says: for those whose
/// exit the agent could not tell before its VM ended. A guest that floods its log may
/// lose some.
pub(crate) fn exits(paths: &Paths) -> HashMap<String, ExitStatus> {
    let log = std::fs::read(paths.kernel_log()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    log.lines().filter_map(guest_api::parse_exit_line).collect()
}

/// The last bytes of a file as text.
fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn panic_line(text: &str) -> Option<String> {
    let line = text.lines().rfind(|line| line.contains("Kernel panic"))?;
    Some(printable(line.trim()))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    printable(&lines[lines.len().saturating_sub(LOG_LINES)..].join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn dir() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            state: dir.path().to_owned(),
            run: dir.path().to_owned(),
        };
        (dir, paths)
    }

    #[test]
    fn the_vmms_own_account_comes_first() {
        let (_dir, paths) = dir();
        fs::write(
            paths.kernel_log(),
            "[ 1.0] Kernel panic - not syncing: log\n",
        )
        .unwrap();
        assert!(find(&paths).cause.contains("not syncing: log"));
        let exit = vm_spec::proto::VmExit {
            reason: Reason::EngineFailure.into(),
            message: "QEMU died".into(),
        };
        fs::write(paths.exit(), vm_spec::exit_to_json(&exit)).unwrap();
        let death = find(&paths);
        assert_eq!(death.cause, "the engine could not go on: QEMU died");
        assert!(!death.orderly);
    }

    #[test]
    fn without_any_account_the_log_or_the_killer_is_named() {
        let (_dir, paths) = dir();
        assert!(find(&paths).cause.contains("killed or crashed"));
        fs::write(paths.vmm_log(), "one\ntwo\n\nthree\nfour\u{1b}[0m\n").unwrap();
        let cause = find(&paths).cause;
        assert!(cause.contains("killed or crashed"), "{cause}");
        assert!(cause.ends_with("two | three | four [0m"), "{cause}");
    }

    #[test]
    fn end_by_a_signal_is_told_as_the_vmm_told_it() {
        let (_dir, paths) = dir();
        let exit = vm_spec::proto::VmExit {
            reason: Reason::Killed.into(),
            message: "it got the signal SIGTERM".into(),
        };
        fs::write(paths.exit(), vm_spec::exit_to_json(&exit)).unwrap();
        let death = find(&paths);
        assert!(death.orderly);
        assert!(
            death.cause.ends_with("the signal SIGTERM"),
            "{}",
            death.cause
        );
    }
}
