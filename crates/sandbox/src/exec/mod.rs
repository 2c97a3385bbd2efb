//! Commands in running containers: a session of input and output
//! ([`crate::Sandboxes::exec`]), or a command run to its end
//! ([`crate::Sandboxes::exec_sync`]).
//!
//! One vsock connection a command, served by one task (`session`). It ends with
//! the command, with its caller's receiver, or with the VM; the agent kills what
//! is left of a command whose connection has ended.

mod collect;
mod session;

use crate::Inner;
use crate::error::SandboxError;
use crate::guest::ExecStream;
use crate::record::ContainerState;
use crate::registry::{ContainerEntry, Entry};
use guest_api::proto;
use tokio::sync::mpsc;

pub(crate) use collect::exec_sync;
pub(crate) use session::BACKLOG;

/// Most arguments and environment variables of a command, each.
const MAX_ITEMS: usize = 4096;
/// Most bytes of both together: they are one frame of the wire.
const MAX_BYTES: usize = 512 << 10;

/// A command to run in a container, with the container's user, capabilities and
/// environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments; not empty, but for a copy.
    pub args: Vec<String>,
    /// Instead of a program: the guest's agent copies files as the container's user,
    /// by stdin or stdout, in frames with a [`proto::CopyItem`] each.
    pub copy: Option<FileCopy>,
    /// NAME=VALUE, besides the container's.
    pub env: Vec<String>,
    /// Absolute; `None`: the container's.
    pub cwd: Option<String>,
    /// A terminal instead of pipes: all output is [`ExecOutput::Stdout`].
    pub terminal: bool,
    /// Size of the terminal at first; `None`: the guest kernel's default.
    pub size: Option<TerminalSize>,
    /// Standard input stays open until [`ExecInput::StdinClosed`]; otherwise it is
    /// /dev/null.
    pub stdin: bool,
}

/// Files of a container. Paths are absolute, or relative to its working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileCopy {
    /// This path and what is beneath it, to stdout.
    Send(Vec<u8>),
    /// From stdin.
    Receive {
        /// Where the copy goes, or a directory that it goes into.
        path: Vec<u8>,
        /// Its name in a directory; empty: the path must be a directory, and gets the
        /// copy's content.
        name: Vec<u8>,
    },
}

impl From<&FileCopy> for proto::FileCopy {
    fn from(copy: &FileCopy) -> Self {
        use proto::file_copy::Way;
        let (way, path, name) = match copy {
            FileCopy::Send(path) => (Way::Send, path.clone(), Vec::new()),
            FileCopy::Receive { path, name } => (Way::Receive, path.clone(), name.clone()),
        };
        let way = way.into();
        Self { way, path, name }
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A command that runs, or an attached container. Dropping [`Self::output`] kills
/// the command; the container goes on.
#[derive(Debug)]
pub struct ExecSession {
    /// Dropped: as [`ExecInput::StdinClosed`].
    pub input: mpsc::Sender<ExecInput>,
    /// Ends after [`ExecOutput::Exited`] or an error.
    pub output: mpsc::Receiver<Result<ExecOutput, SandboxError>>,
}

/// What goes to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes of any number.
    Stdin(Vec<u8>),
    /// There is no more input. A terminal has no end but what is typed (^D), so
    /// there it only ends the caller's part.
    StdinClosed,
    /// Of a command with a terminal.
    Resize(TerminalSize),
    /// To the command's first process; 1 to 64, another number ends the session.
    Signal(u32),
}

/// What comes from a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Standard output.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// Of an attached session only: so many bytes of output are missing here, as
    /// the caller took too long for what came before.
    Lost(u64),
    /// The end, after all output.
    Exited(ExecExit),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecExit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// The signal that ended it, 0 if none.
    pub signal: u32,
}

/// A command that was run to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecResult {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// There was more output than was asked for.
    pub truncated: bool,
}

/// Starts a command; returns when it runs.
pub(crate) async fn exec(
    inner: &Inner,
    entry: &Entry,
    item: &ContainerEntry,
    spec: &ExecSpec,
) -> Result<ExecSession, SandboxError> {
    check(spec)?;
    if item.state() != ContainerState::Running {
        return Err(item.wrong_state("Running"));
    }
    let live = entry.require_live()?;
    let what = "run a command";
    let limit = inner.config.timeouts.call;
    let vsock = live.paths.vsock();
    let open = ExecStream::open(&vsock, request(&item.id, spec));
    let stream = live.within(what, limit, open).await?;
    Ok(session::spawn(live, what, stream))
}

fn request(container: &str, spec: &ExecSpec) -> proto::ExecRequest {
    proto::ExecRequest {
        container_id: container.to_owned(),
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone().unwrap_or_default(),
        terminal: spec.terminal,
        size: spec.size.map(Into::into),
        stdin: spec.stdin,
        copy: spec.copy.as_ref().map(Into::into),
    }
}

impl From<TerminalSize> for proto::TerminalSize {
    fn from(size: TerminalSize) -> Self {
        Self {
            columns: size.columns.into(),
            rows: size.rows.into(),
        }
    }
}

fn check(spec: &ExecSpec) -> Result<(), SandboxError> {
    let invalid = |field, message: &str| {
        Err(SandboxError::Invalid {
            field,
            message: message.to_owned(),
        })
    };
    match (&spec.copy, spec.args.first()) {
        (Some(_), Some(_)) => return invalid("command", "goes with no copy of files"),
        (None, first) if first.is_none_or(String::is_empty) => {
            return invalid("command", "required");
        }
        _ => {}
    }
    let texts = || spec.args.iter().chain(&spec.env).chain(&spec.cwd);
    if texts().any(|text| text.contains('\0')) {
        return invalid("command", "holds a zero byte");
    }
    let bytes: usize = texts().map(String::len).sum();
    if spec.args.len() > MAX_ITEMS || spec.env.len() > MAX_ITEMS || bytes > MAX_BYTES {
        return invalid("command", "longer than 4096 arguments or 512 KiB");
    }
    if spec.cwd.as_ref().is_some_and(|cwd| !cwd.starts_with('/')) {
        return invalid("cwd", "must be an absolute path");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(args: &[&str]) -> ExecSpec {
        ExecSpec {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..ExecSpec::default()
        }
    }

    #[test]
    fn commands_that_no_guest_can_run_are_refused() {
        check(&command(&["true"])).unwrap();
        for args in [&[][..], &[""], &["sh", "a\0b"]] {
            assert!(check(&command(args)).is_err(), "{args:?}");
        }
        let long = "x".repeat(MAX_BYTES);
        assert!(check(&command(&["sh", &long])).is_err());
        let mut elsewhere = command(&["sh"]);
        elsewhere.cwd = Some("tmp".into());
        assert!(check(&elsewhere).is_err());
    }
}
