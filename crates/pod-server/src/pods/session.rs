//! Exec and Attach: a session of the sandbox crate as a pair of streams. Each
//! side's pace is the other's; when the answers are dropped, the session ends.

use super::{Answers, Pods};
use crate::status;
use pod_api::v1::file_copy::Way;
use pod_api::v1::session_input::Kind as In;
use pod_api::v1::session_output::Kind as Out;
use pod_api::v1::{
    AttachRequest, ExecRequest, SessionExit, SessionInput, SessionOutput, TerminalSize,
    attach_request, exec_request,
};
use sandbox::{AttachSpec, ExecInput, ExecOutput, ExecSession, ExecSpec, FileCopy, SandboxError};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Runs a command.
pub(super) async fn exec(
    pods: &Pods,
    mut requests: Streaming<ExecRequest>,
) -> Result<Answers<SessionOutput>, Status> {
    let first = requests.message().await?.and_then(|request| request.kind);
    let Some(exec_request::Kind::Start(start)) = first else {
        return Err(no_start());
    };
    let container = pods.container(&start.pod, &start.container)?;
    let copy = start.copy.map(file_copy).transpose()?;
    let spec = ExecSpec {
        args: start.command,
        copy,
        terminal: start.terminal,
        size: start.size.map(size),
        stdin: start.stdin,
        ..ExecSpec::default()
    };
    let session = pods.sandboxes.exec(&container, spec).await;
    let input = |request: ExecRequest| match request.kind {
        Some(exec_request::Kind::Input(input)) => Some(input),
        _ => None,
    };
    Ok(serve(session.map_err(|e| failed(&e))?, requests, input))
}

/// Attaches to a container.
pub(super) async fn attach(
    pods: &Pods,
    mut requests: Streaming<AttachRequest>,
) -> Result<Answers<SessionOutput>, Status> {
    let first = requests.message().await?.and_then(|request| request.kind);
    let Some(attach_request::Kind::Start(start)) = first else {
        return Err(no_start());
    };
    let container = pods.container(&start.pod, &start.container)?;
    let spec = AttachSpec {
        stdin: start.stdin,
        stdout: true,
        stderr: true,
        terminal: start.terminal,
    };
    let session = pods.sandboxes.attach(&container, spec).await;
    let input = |request: AttachRequest| match request.kind {
        Some(attach_request::Kind::Input(input)) => Some(input),
        _ => None,
    };
    Ok(serve(session.map_err(|e| failed(&e))?, requests, input))
}

fn file_copy(copy: pod_api::v1::FileCopy) -> Result<FileCopy, Status> {
    match copy.way() {
        Way::FromContainer => Ok(FileCopy::Send(copy.path)),
        Way::ToContainer => Ok(FileCopy::Receive {
            path: copy.path,
            name: copy.name,
        }),
        Way::Unspecified => Err(Status::invalid_argument("start.copy.way: required")),
    }
}

fn no_start() -> Status {
    Status::invalid_argument("start: must be the first message, and the only one of its kind")
}

fn failed(error: &SandboxError) -> Status {
    status::of_sandbox(error)
}

fn serve<R: Send + 'static>(
    session: ExecSession,
    requests: Streaming<R>,
    input: impl Fn(R) -> Option<SessionInput> + Send + 'static,
) -> Answers<SessionOutput> {
    tokio::spawn(take_input(session.input, requests, input));
    let output = ReceiverStream::new(session.output);
    Box::pin(output.map(|output| output.map(answer).map_err(|e| failed(&e))))
}

/// Hands on what the caller sends; ends with the call, which its end or the
/// session's may be.
async fn take_input<R>(
    session: mpsc::Sender<ExecInput>,
    mut requests: Streaming<R>,
    input: impl Fn(R) -> Option<SessionInput>,
) {
    while let Ok(Some(request)) = requests.message().await {
        // Of a kind that this version does not know: passed over.
        let Some(kind) = input(request).and_then(|input| input.kind) else {
            continue;
        };
        let input = match kind {
            In::Stdin(bytes) => ExecInput::Stdin(bytes),
            In::StdinClosed(_) => ExecInput::StdinClosed,
            In::Resize(to) => ExecInput::Resize(size(to)),
        };
        if session.send(input).await.is_err() {
            return;
        }
    }
}

fn size(size: TerminalSize) -> sandbox::TerminalSize {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    sandbox::TerminalSize {
        columns: clamp(size.columns),
        rows: clamp(size.rows),
    }
}

fn answer(output: ExecOutput) -> SessionOutput {
    let kind = match output {
        ExecOutput::Stdout(bytes) => Out::Stdout(bytes),
        ExecOutput::Stderr(bytes) => Out::Stderr(bytes),
        ExecOutput::Lost(bytes) => Out::Lost(bytes),
        ExecOutput::Exited(exit) => Out::Exited(SessionExit {
            code: exit.code,
            signal: exit.signal,
        }),
    };
    SessionOutput { kind: Some(kind) }
}
