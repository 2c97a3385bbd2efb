//! The task of one command: what its caller sends to the guest, what the guest
//! sends to its caller, each no faster than the other side takes it.

use super::{ExecExit, ExecInput, ExecOutput, ExecSession};
use crate::error::SandboxError;
use crate::guest::{ExecReader, ExecStream, ExecWriter, GuestError};
use crate::live::Live;
use guest_api::proto::{ExecInput as Frame, exec_input::Kind as In, exec_output::Kind as Out};
use std::future::pending;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Items that may wait on either way; an item has at most 1 MiB.
const BACKLOG: usize = 8;
/// Most bytes of input in a frame.
const CHUNK: usize = 64 << 10;
/// Exit code of a command of which the guest tells none that is possible.
const CODE_UNKNOWN: i32 = 255;

type Output = Result<ExecOutput, SandboxError>;

/// Serves a command that runs.
pub(super) fn spawn(live: Arc<Live>, what: &'static str, stream: ExecStream) -> ExecSession {
    let (input, inputs) = mpsc::channel(BACKLOG);
    let (outputs, output) = mpsc::channel(BACKLOG);
    tokio::spawn(async move { serve(&live, what, stream, inputs, outputs).await });
    ExecSession { input, output }
}

async fn serve(
    live: &Live,
    what: &'static str,
    stream: ExecStream,
    inputs: mpsc::Receiver<ExecInput>,
    outputs: mpsc::Sender<Output>,
) {
    let (mut reader, mut writer) = stream.into_split();
    let written = async {
        // The end of the connection is the reader's to tell.
        let _ = write(&mut writer, inputs).await;
        pending::<()>().await;
    };
    let last = tokio::select! {
        end = read(&mut reader, &outputs) => match end {
            Ok(Some(exit)) => Ok(ExecOutput::Exited(exit)),
            Ok(None) => return,
            Err(error) => Err(live.explain(what, error).await),
        },
        cause = live.died() => Err(live.dead(cause)),
        // Its caller is gone.
        () = outputs.closed() => return,
        () = written => return,
    };
    let _ = outputs.send(last).await;
}

/// Hands on what the command says until its end; `None`: nobody wants it.
async fn read(
    reader: &mut ExecReader,
    outputs: &mpsc::Sender<Output>,
) -> Result<Option<ExecExit>, GuestError> {
    loop {
        let output = match reader.next().await? {
            Out::Stdout(bytes) => ExecOutput::Stdout(bytes),
            Out::Stderr(bytes) => ExecOutput::Stderr(bytes),
            Out::Exited(exit) => {
                return Ok(Some(ExecExit {
                    code: i32::try_from(exit.code & 0xff).unwrap_or(CODE_UNKNOWN),
                    signal: exit.signal,
                }));
            }
            Out::Error(error) => return Err(GuestError::refused(&error)),
            Out::Started(_) => continue,
        };
        if outputs.send(Ok(output)).await.is_err() {
            return Ok(None);
        }
    }
}

/// Sends what the caller says, until it says no more.
async fn write(
    writer: &mut ExecWriter,
    mut inputs: mpsc::Receiver<ExecInput>,
) -> Result<(), GuestError> {
    let mut open = true;
    while let Some(input) = inputs.recv().await {
        match input {
            ExecInput::Stdin(bytes) => {
                for chunk in bytes.chunks(CHUNK) {
                    send(writer, In::Stdin(chunk.to_vec())).await?;
                }
            }
            ExecInput::StdinClosed => {
                open = false;
                send(writer, In::StdinClosed(true)).await?;
            }
            ExecInput::Resize(size) => send(writer, In::Resize(size.into())).await?,
            ExecInput::Signal(signal) => send(writer, In::Signal(signal)).await?,
        }
    }
    if open {
        send(writer, In::StdinClosed(true)).await?;
    }
    Ok(())
}

async fn send(writer: &mut ExecWriter, kind: In) -> Result<(), GuestError> {
    writer.send(&Frame { kind: Some(kind) }).await
}
