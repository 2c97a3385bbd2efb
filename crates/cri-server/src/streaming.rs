//! What the streaming server serves: commands in containers, their own streams and
//! connections to pods, as the sandbox crate makes them.

use crate::error::CriError;
use crate::record::CriContainer;
use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt, SinkExt, StreamExt};
use sandbox::{
    AttachSpec, ContainerState, ExecInput, ExecOutput, ExecSession, ExecSpec, SandboxError,
    Sandboxes, TerminalSize,
};
use std::sync::Arc;
use streaming_server::{
    AttachRequest, Backend, Connection, Ended, ExecRequest, Failure, Input, Output, Session,
    Streams,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

/// The side of the containers, for a [`streaming_server::StreamingServer`].
pub fn streaming_backend(sandboxes: Sandboxes) -> Arc<dyn Backend> {
    Arc::new(Containers { sandboxes })
}

#[derive(Debug)]
struct Containers {
    sandboxes: Sandboxes,
}

impl Backend for Containers {
    fn exec(
        &self,
        request: ExecRequest,
        size: Option<streaming_server::TerminalSize>,
    ) -> BoxFuture<'static, Result<Session, Failure>> {
        let sandboxes = self.sandboxes.clone();
        async move {
            let spec = ExecSpec {
                args: request.command,
                terminal: request.streams.terminal,
                stdin: request.streams.stdin,
                size: size.map(in_characters),
                ..ExecSpec::default()
            };
            let started = sandboxes.exec(&request.container, spec).await;
            started.map(session).map_err(|error| failure(&error))
        }
        .boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'static, Result<Session, Failure>> {
        let sandboxes = self.sandboxes.clone();
        async move {
            let Streams {
                stdin,
                stdout,
                stderr,
                terminal,
            } = request.streams;
            let spec = AttachSpec {
                stdin,
                stdout,
                stderr,
                terminal,
            };
            let attached = sandboxes.attach(&request.container, spec).await;
            attached.map(session).map_err(|error| failure(&error))
        }
        .boxed()
    }

    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
    ) -> BoxFuture<'static, Result<Box<dyn Connection>, Failure>> {
        let sandboxes = self.sandboxes.clone();
        let sandbox = sandbox.to_owned();
        async move {
            let connected = sandboxes.port_forward(&sandbox, port).await;
            let connection = connected.map_err(|error| failure(&error))?;
            Ok(Box::new(connection) as Box<dyn Connection>)
        }
        .boxed()
    }
}

fn failure(error: &SandboxError) -> Failure {
    Failure(sandbox::chain(error))
}

fn session(exec: ExecSession) -> Session {
    let input = PollSender::new(exec.input)
        .sink_map_err(|_| Ended)
        .with(|said| {
            ready(Ok(match said {
                Input::Stdin(bytes) => ExecInput::Stdin(bytes),
                Input::StdinClosed => ExecInput::StdinClosed,
                Input::Resize(size) => ExecInput::Resize(in_characters(size)),
            }))
        });
    let output = ReceiverStream::new(exec.output).map(output);
    Session {
        input: Box::pin(input),
        output: output.boxed(),
    }
}

fn in_characters(size: streaming_server::TerminalSize) -> TerminalSize {
    let streaming_server::TerminalSize { columns, rows } = size;
    TerminalSize { columns, rows }
}

fn output(said: Result<ExecOutput, SandboxError>) -> Result<Output, Failure> {
    match said {
        Ok(ExecOutput::Stdout(bytes)) => Ok(Output::Stdout(bytes)),
        Ok(ExecOutput::Stderr(bytes)) => Ok(Output::Stderr(bytes)),
        Ok(ExecOutput::Lost(bytes)) => Ok(Output::Lost(bytes)),
        Ok(ExecOutput::Exited(exit)) => Ok(Output::Exited(exit.code)),
        Err(error) => Err(failure(&error)),
    }
}

/// The streams that a request wants, if they go together.
pub(crate) fn wanted(
    stdin: bool,
    stdout: bool,
    stderr: bool,
    terminal: bool,
) -> Result<Streams, CriError> {
    if terminal && stderr {
        let message = "must be false with tty: a terminal has one output only";
        return Err(CriError::invalid("stderr", message));
    }
    if !(stdin || stdout || stderr) {
        let message = "one of stdin, stdout and stderr must be true";
        return Err(CriError::invalid("stdin", message));
    }
    Ok(Streams {
        stdin,
        stdout,
        stderr,
        terminal,
    })
}

/// Only a running container has something to speak with.
pub(crate) fn require_running(found: &CriContainer) -> Result<(), CriError> {
    match found.container.state {
        ContainerState::Running => Ok(()),
        state => Err(CriError::Precondition(format!(
            "the container {} is {state:?}; it must be Running",
            found.id()
        ))),
    }
}
