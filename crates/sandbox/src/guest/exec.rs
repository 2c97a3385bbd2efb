//! The wire of one command in the guest: a connection of its own.

use super::client::{GuestError, fill, greet};
use super::vsock::connect_patiently;
use guest_api::proto::{ExecInput, ExecOutput, ExecRequest, exec_output::Kind};
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use wire::{FrameDecoder, WireError};

/// A command that runs in the guest. Dropping it closes the connection, and the
/// agent kills the command.
#[derive(Debug)]
pub(crate) struct ExecStream {
    reader: ExecReader,
    writer: ExecWriter,
}

/// What comes from it.
#[derive(Debug)]
pub(crate) struct ExecReader {
    stream: OwnedReadHalf,
    decoder: FrameDecoder,
}

/// What goes to it.
#[derive(Debug)]
pub(crate) struct ExecWriter(OwnedWriteHalf);

impl ExecStream {
    /// Connects and starts the command; returns when it runs.
    pub(crate) async fn open(socket: &Path, request: ExecRequest) -> Result<Self, GuestError> {
        let stream = connect_patiently(socket, guest_api::EXEC_PORT).await;
        Self::start(stream.map_err(GuestError::Connect)?, request).await
    }

    /// The same, on a stream that reached the agent.
    pub(crate) async fn start(
        mut stream: UnixStream,
        request: ExecRequest,
    ) -> Result<Self, GuestError> {
        let decoder = greet(&mut stream).await?;
        let (stream, writer) = stream.into_split();
        let mut exec = Self {
            reader: ExecReader { stream, decoder },
            writer: ExecWriter(writer),
        };
        let frame = wire::encode(&request)?;
        let sent = exec.writer.0.write_all(&frame).await;
        sent.map_err(WireError::from)?;
        match exec.reader.next().await? {
            Kind::Started(_) => Ok(exec),
            Kind::Error(error) => Err(GuestError::refused(&error)),
            _ => Err(GuestError::WrongAnswer),
        }
    }

    pub(crate) fn into_split(self) -> (ExecReader, ExecWriter) {
        (self.reader, self.writer)
    }
}

impl ExecReader {
    /// The next message. Not to be dropped half-way.
    pub(crate) async fn next(&mut self) -> Result<Kind, GuestError> {
        loop {
            if let Some(output) = self.decoder.next_message::<ExecOutput>()? {
                // Of a kind that this version does not know: passed over.
                if let Some(kind) = output.kind {
                    return Ok(kind);
                }
                continue;
            }
            if !fill(&mut self.stream, &mut self.decoder).await? {
                return Err(GuestError::Lost);
            }
        }
    }
}

impl ExecWriter {
    /// Sends one message; waits while the guest takes none.
    pub(crate) async fn send(&mut self, input: &ExecInput) -> Result<(), GuestError> {
        let frame = wire::encode(input)?;
        self.0.write_all(&frame).await.map_err(WireError::from)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::fake_agent::FakeAgent;
    use guest_api::proto::ExecStarted;

    async fn answered(kind: Option<Kind>) -> Result<ExecStream, GuestError> {
        let (ours, mut agent) = FakeAgent::pair().await;
        let request = ExecRequest {
            args: vec!["true".into()],
            ..ExecRequest::default()
        };
        let served = async {
            agent.hello().await;
            let request: ExecRequest = agent.next().await;
            assert_eq!(request.args, ["true"]);
            if kind.is_some() {
                agent.send(&ExecOutput { kind }).await;
            }
            drop(agent);
        };
        tokio::join!(ExecStream::start(ours, request), served).0
    }

    #[tokio::test]
    async fn command_runs_once_the_agent_says_so() {
        let started = Kind::Started(ExecStarted { pid: 7 });
        let mut exec = answered(Some(started)).await.unwrap();
        assert!(matches!(exec.reader.next().await, Err(GuestError::Lost)));
    }

    #[tokio::test]
    async fn refusal_silence_and_a_wrong_first_word_are_errors() {
        let refusal = wire::proto::Error {
            code: wire::proto::error::Code::NotFound.into(),
            message: "no such program".into(),
            ..Default::default()
        };
        let refused = answered(Some(Kind::Error(refusal))).await.unwrap_err();
        assert!(refused.to_string().contains("no such program"), "{refused}");
        assert!(matches!(answered(None).await, Err(GuestError::Lost)));
        let early = answered(Some(Kind::Stdout(vec![1]))).await;
        assert!(matches!(early, Err(GuestError::WrongAnswer)));
    }
}
