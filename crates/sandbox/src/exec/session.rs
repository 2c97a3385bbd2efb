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
pub(crate) const BACKLOG: usize = 8;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::TerminalSize;
    use crate::guest::fake_agent::FakeAgent;
    use crate::live::tests::live;
    use guest_api::proto::{ExecOutput as Said, ExecRequest, ExecStarted, ExitStatus};

    async fn session(live: &Arc<Live>) -> (ExecSession, FakeAgent) {
        let (ours, mut agent) = FakeAgent::pair().await;
        let started = async {
            agent.hello().await;
            let _: ExecRequest = agent.next().await;
            say(&mut agent, Out::Started(ExecStarted { pid: 1 })).await;
        };
        let (stream, ()) = tokio::join!(ExecStream::start(ours, ExecRequest::default()), started);
        (
            spawn(Arc::clone(live), "run a command", stream.unwrap()),
            agent,
        )
    }

    async fn say(agent: &mut FakeAgent, kind: Out) {
        agent.send(&Said { kind: Some(kind) }).await;
    }

    async fn heard(agent: &mut FakeAgent) -> Option<In> {
        agent.next_or_end::<Frame>().await.map(|f| f.kind.unwrap())
    }

    #[tokio::test]
    async fn output_comes_in_order_and_the_exit_last() {
        let (mut session, mut agent) = session(&live()).await;
        say(&mut agent, Out::Stdout(b"a".to_vec())).await;
        say(&mut agent, Out::Stderr(b"b".to_vec())).await;
        let exit = ExitStatus {
            code: 256 + 143,
            signal: 15,
            ..ExitStatus::default()
        };
        say(&mut agent, Out::Exited(exit)).await;
        let mut got = Vec::new();
        while let Some(output) = session.output.recv().await {
            got.push(output.unwrap());
        }
        let exit = ExecExit {
            code: 143,
            signal: 15,
        };
        let expected = [
            ExecOutput::Stdout(b"a".to_vec()),
            ExecOutput::Stderr(b"b".to_vec()),
            ExecOutput::Exited(exit),
        ];
        assert_eq!(got, expected);
        // And the connection with it.
        assert_eq!(heard(&mut agent).await, None);
    }

    #[tokio::test]
    async fn input_goes_in_pieces_and_ends_with_its_sender() {
        let (session, mut agent) = session(&live()).await;
        let input = session.input;
        input
            .send(ExecInput::Stdin(vec![7; CHUNK + 1]))
            .await
            .unwrap();
        let size = TerminalSize {
            columns: 80,
            rows: 25,
        };
        input.send(ExecInput::Resize(size)).await.unwrap();
        input.send(ExecInput::Signal(2)).await.unwrap();
        drop(input);
        assert_eq!(heard(&mut agent).await, Some(In::Stdin(vec![7; CHUNK])));
        assert_eq!(heard(&mut agent).await, Some(In::Stdin(vec![7])));
        assert_eq!(heard(&mut agent).await, Some(In::Resize(size.into())));
        assert_eq!(heard(&mut agent).await, Some(In::Signal(2)));
        assert_eq!(heard(&mut agent).await, Some(In::StdinClosed(true)));
    }

    #[tokio::test]
    async fn caller_that_goes_away_ends_the_connection_also_while_output_waits() {
        let (mut session, mut agent) = session(&live()).await;
        for _ in 0..BACKLOG + 2 {
            say(&mut agent, Out::Stdout(vec![0; 1000])).await;
        }
        session.output.recv().await.unwrap().unwrap();
        drop(session.output);
        assert_eq!(heard(&mut agent).await, None);
    }

    #[tokio::test]
    async fn output_that_nobody_takes_makes_the_guest_wait() {
        let (mut session, agent) = session(&live()).await;
        let said = BACKLOG * 100;
        let speaker = tokio::spawn(async move {
            let mut agent = agent;
            for n in 0..said {
                say(
                    &mut agent,
                    Out::Stdout(vec![u8::try_from(n % 251).unwrap(); 60_000]),
                )
                .await;
            }
            agent
        });
        // Nothing is lost of what waited.
        for n in 0..said {
            let Some(Ok(ExecOutput::Stdout(bytes))) = session.output.recv().await else {
                panic!("output {n} is missing");
            };
            assert_eq!(usize::from(bytes[0]), n % 251);
            assert!(session.output.len() <= BACKLOG);
        }
        drop(speaker.await.unwrap());
        assert!(session.output.recv().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn death_of_the_vm_is_told_at_once() {
        let live = live();
        let (mut session, _agent) = session(&live).await;
        live.set_died("the guest kernel panicked".into());
        let Some(Err(SandboxError::VmDied { cause, .. })) = session.output.recv().await else {
            panic!("not told");
        };
        assert_eq!(cause, "the guest kernel panicked");
        assert!(session.output.recv().await.is_none());
    }

    #[tokio::test]
    async fn lost_connection_is_an_error() {
        let (mut session, agent) = session(&live()).await;
        drop(agent);
        let error = session.output.recv().await.unwrap().unwrap_err();
        assert!(matches!(error, SandboxError::Guest { .. }), "{error}");
    }
}
