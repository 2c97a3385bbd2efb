//! QEMU's machine protocol (QMP): commands one after the other, events between.
//!
//! A thread of its own reads; whoever sends a command waits for the reader to
//! hand over the answer. QEMU is as trusted as the guest inside it: lines are
//! bounded, and one that is no JSON ends the connection.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;
/// How long a command may take. Stopping vCPUs takes milliseconds, also on a
/// loaded machine; the start of QEMU counts, too.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// QEMU closed the connection or broke the protocol; it is about to end.
    #[error("QEMU closed its control connection")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer {0:?} within {secs} s", secs = COMMAND_TIMEOUT.as_secs())]
    Timeout(&'static str),
    /// QEMU refused.
    #[error("QEMU refused {command:?}: {detail}")]
    Refused {
        /// The command.
        command: &'static str,
        /// In QEMU's words.
        detail: String,
    },
}

/// The control connection of one QEMU.
pub(super) struct Qmp {
    stream: UnixStream,
    answers: Receiver<Value>,
}

impl Qmp {
    /// Waits for QEMU's greeting. When this returns, the machine is built and
    /// its vCPUs run.
    pub(super) fn connect(stream: UnixStream) -> Result<Self, QmpError> {
        let reader = stream.try_clone().map_err(|_| QmpError::Closed)?;
        let (to, answers) = sync_channel(4);
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || read_answers(reader, &to))
            .map_err(|_| QmpError::Closed)?;
        let mut qmp = Self { stream, answers };
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command that takes no arguments and answers nothing of interest.
    pub(super) fn execute(&mut self, command: &'static str) -> Result<(), QmpError> {
        // An answer that came after its time limit is not this command's.
        while self.answers.try_recv().is_ok() {}
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream
            .write_all(line.as_bytes())
            .map_err(|_| QmpError::Closed)?;
        match self.answers.recv_timeout(COMMAND_TIMEOUT) {
            Ok(answer) => match answer.get("error") {
                None => Ok(()),
                Some(error) => Err(QmpError::Refused {
                    command,
                    detail: error["desc"].as_str().unwrap_or("no reason given").into(),
                }),
            },
            Err(RecvTimeoutError::Timeout) => Err(QmpError::Timeout(command)),
            Err(RecvTimeoutError::Disconnected) => Err(QmpError::Closed),
        }
    }
}

/// Hands over answers; logs events; ends with the connection.
fn read_answers(stream: UnixStream, to: &SyncSender<Value>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match (&mut stream).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let Ok(message) = serde_json::from_slice::<Value>(&line) else {
            tracing::warn!("QEMU sent something that is no QMP message");
            return;
        };
        if let Some(event) = message["event"].as_str() {
            tracing::debug!(event, data = %message["data"], "QEMU event");
        } else if (message.get("return").is_some() || message.get("error").is_some())
            && to.send(message).is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each line with the next one of `script`.
    fn fake_qemu(script: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut writer = theirs.try_clone().unwrap();
            writer.write_all(b"{\"QMP\":{}}\n").unwrap();
            let mut lines = BufReader::new(theirs).lines();
            for answer in script {
                lines.next();
                writer.write_all(answer.as_bytes()).unwrap();
            }
        });
        ours
    }

    #[test]
    fn events_between_answers_are_passed_over() {
        let stream = fake_qemu(&[
            "{\"return\":{}}\n",
            "{\"event\":\"STOP\",\"data\":{}}\n{\"return\":{}}\n",
        ]);
        let mut qmp = Qmp::connect(stream).unwrap();
        qmp.execute("stop").unwrap();
    }

    #[test]
    fn refusal_carries_the_reason() {
        let stream = fake_qemu(&[
            "{\"return\":{}}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"not now\"}}\n",
        ]);
        let error = Qmp::connect(stream).unwrap().execute("cont").unwrap_err();
        assert!(error.to_string().contains("not now"), "{error}");
    }

    #[test]
    fn garbage_and_hangup_close_the_connection() {
        for script in [&["what?\n"] as &[_], &[]] {
            let got = Qmp::connect(fake_qemu(script));
            assert!(matches!(got, Err(QmpError::Closed)));
        }
    }
}
