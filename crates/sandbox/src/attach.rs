//! Sessions with a running container's own streams ([`crate::Sandboxes::attach`]):
//! its output as the VMM copies it into the log, its stdin by a connection to the
//! agent. A session ends with the container or with its caller; the container
//! knows nothing of it.

use crate::Inner;
use crate::error::SandboxError;
use crate::events::{Change, Event};
use crate::exec::{BACKLOG, ExecExit, ExecInput, ExecOutput, ExecSession};
use crate::guest::{GuestError, fill, open_stdin};
use crate::live::Live;
use crate::record::ContainerState;
use crate::registry::{ContainerEntry, Entry};
use guest_api::proto::{ResizeTerminalRequest, SignalContainerRequest, client_message::Call};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};
use vm_spec::proto::{LogOutput, log_output::Kind};
use wire::FrameDecoder;

/// How long after the container's end its output may be silent: where another
/// container of a shared PID namespace holds it open it never ends.
const SILENCE: Duration = Duration::from_secs(1);

/// What a session is for; at least one of the streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachSpec {
    /// The caller has input; of a container that was made with stdin.
    pub stdin: bool,
    /// The caller wants standard output, or all that a terminal prints.
    pub stdout: bool,
    /// The caller wants standard error.
    pub stderr: bool,
    /// The caller expects a terminal; of a container that has one.
    pub terminal: bool,
}

type Output = Result<ExecOutput, SandboxError>;

/// Begins a session.
pub(crate) async fn attach(
    inner: &Arc<Inner>,
    entry: &Entry,
    item: &Arc<ContainerEntry>,
    spec: AttachSpec,
) -> Result<ExecSession, SandboxError> {
    let (has_stdin, once, terminal) = item.record.read(|c| {
        let process = &c.spec.process;
        (process.stdin, process.stdin_once, process.terminal)
    });
    check(spec, has_stdin, terminal)?;
    if item.state() != ContainerState::Running {
        return Err(item.wrong_state("Running"));
    }
    let live = entry.require_live()?;
    // Before the output: an end that follows is heard of.
    let events = inner.events.subscribe();
    let follow = live.vmm.follow_output(&item.id, spec.stdout, spec.stderr);
    let output = live.or_death(follow.await).await?;
    let stdin = if spec.stdin {
        let vsock = live.paths.vsock();
        let limit = inner.config.timeouts.call;
        let open = open_stdin(&vsock, &item.id, !once);
        Some(
            live.within("open the container's stdin", limit, open)
                .await?,
        )
    } else {
        None
    };
    let (input, inputs) = mpsc::channel(BACKLOG);
    let (outputs, receiver) = mpsc::channel(BACKLOG);
    let session = Session {
        inner: Arc::clone(inner),
        live,
        item: Arc::clone(item),
    };
    tokio::spawn(async move { session.serve(output, stdin, events, inputs, outputs).await });
    Ok(ExecSession {
        input,
        output: receiver,
    })
}

fn check(spec: AttachSpec, has_stdin: bool, terminal: bool) -> Result<(), SandboxError> {
    let invalid = |field, message: &str| {
        Err(SandboxError::Invalid {
            field,
            message: message.to_owned(),
        })
    };
    if !(spec.stdin || spec.stdout || spec.stderr) {
        return invalid("stdin, stdout, stderr", "at least one is needed");
    }
    if spec.stdin && !has_stdin {
        return invalid("stdin", "the container was made without stdin");
    }
    if spec.terminal && !terminal {
        return invalid("tty", "the container was made without a terminal");
    }
    Ok(())
}

struct Session {
    inner: Arc<Inner>,
    live: Arc<Live>,
    item: Arc<ContainerEntry>,
}

impl Session {
    async fn serve(
        &self,
        output: UnixStream,
        stdin: Option<UnixStream>,
        events: broadcast::Receiver<Event>,
        inputs: mpsc::Receiver<ExecInput>,
        outputs: mpsc::Sender<Output>,
    ) {
        let written = async {
            self.write(stdin, inputs).await;
            pending::<()>().await;
        };
        let last = tokio::select! {
            last = self.read(output, events, &outputs) => match last {
                Some(last) => last,
                None => return,
            },
            cause = self.live.died() => Err(self.live.dead(cause)),
            // Its caller is gone.
            () = outputs.closed() => return,
            () = written => return,
        };
        let _ = outputs.send(last).await;
    }

    /// Hands on the output until the container has ended; `None`: nobody wants it.
    async fn read(
        &self,
        output: UnixStream,
        mut events: broadcast::Receiver<Event>,
        outputs: &mpsc::Sender<Output>,
    ) -> Option<Output> {
        let mut output = OutputReader {
            stream: output,
            decoder: FrameDecoder::default(),
        };
        let exit = self.exited(&mut events);
        tokio::pin!(exit);
        let exit = loop {
            let said = tokio::select! {
                said = output.next() => said,
                exit = &mut exit => break exit,
            };
            match said {
                Ok(Some(said)) => outputs.send(Ok(said)).await.ok()?,
                // The rest is the container's end.
                Ok(None) => break exit.await,
                Err(error) => return Some(Err(self.broken(error).await)),
            }
        };
        while let Ok(Ok(Some(said))) = tokio::time::timeout(SILENCE, output.next()).await {
            outputs.send(Ok(said)).await.ok()?;
        }
        Some(exit.map(ExecOutput::Exited))
    }

    async fn broken(&self, error: GuestError) -> SandboxError {
        self.live.explain("hand on the output", error).await
    }

    /// Waits for the container's end.
    async fn exited(
        &self,
        events: &mut broadcast::Receiver<Event>,
    ) -> Result<ExecExit, SandboxError> {
        let id = &self.item.id;
        let gone = || SandboxError::NoSuchContainer(id.clone());
        loop {
            if let Some(exit) = self.item.record.read(|c| c.exit.clone()) {
                let (code, signal) = (exit.code, exit.signal);
                return Ok(ExecExit { code, signal });
            }
            match events.recv().await {
                Ok(event) => {
                    if matches!(&event.change, Change::ContainerRemoved(c) if c == id) {
                        return Err(gone());
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Err(gone()),
            }
        }
    }

    /// Carries out what the caller says, until it says no more.
    async fn write(&self, mut stdin: Option<UnixStream>, mut inputs: mpsc::Receiver<ExecInput>) {
        while let Some(input) = inputs.recv().await {
            match input {
                ExecInput::Stdin(bytes) => {
                    if let Some(stream) = &mut stdin
                        && stream.write_all(&bytes).await.is_err()
                    {
                        // The container has closed it.
                        stdin = None;
                    }
                }
                ExecInput::StdinClosed => stdin = None,
                ExecInput::Resize(size) => {
                    let call = Call::ResizeTerminal(ResizeTerminalRequest {
                        container_id: self.item.id.clone(),
                        size: Some(size.into()),
                    });
                    self.call("resize the terminal", call).await;
                }
                ExecInput::Signal(signal) => {
                    let call = Call::SignalContainer(SignalContainerRequest {
                        container_id: self.item.id.clone(),
                        signal,
                        all: false,
                    });
                    self.call("signal the container", call).await;
                }
            }
        }
    }

    async fn call(&self, what: &'static str, call: Call) {
        let timeouts = &self.inner.config.timeouts;
        if let Err(error) = self.live.call(what, call, timeouts).await {
            tracing::debug!(container = self.item.id, %error, "an attached caller's wish failed");
        }
    }
}

/// The VMM's copy of the output.
struct OutputReader {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl OutputReader {
    /// The next piece; `None` at the end. May be dropped half-way.
    async fn next(&mut self) -> Result<Option<ExecOutput>, GuestError> {
        loop {
            if let Some(output) = self.decoder.next_message::<LogOutput>()? {
                match output.kind {
                    Some(Kind::Stdout(bytes)) => return Ok(Some(ExecOutput::Stdout(bytes))),
                    Some(Kind::Stderr(bytes)) => return Ok(Some(ExecOutput::Stderr(bytes))),
                    Some(Kind::Lost(bytes)) => return Ok(Some(ExecOutput::Lost(bytes))),
                    None => continue,
                }
            }
            if !fill(&mut self.stream, &mut self.decoder).await? {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_need_what_the_container_has() {
        let all = AttachSpec {
            stdin: true,
            stdout: true,
            stderr: true,
            terminal: true,
        };
        check(all, true, true).unwrap();
        assert!(check(all, false, true).is_err());
        assert!(check(all, true, false).is_err());
        assert!(check(AttachSpec::default(), true, true).is_err());
    }
}
