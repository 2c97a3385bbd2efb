//! The agent's end of a connection, played by a test.

use super::client::fill;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use wire::FrameDecoder;

pub(crate) struct FakeAgent {
    pub(crate) stream: UnixStream,
    decoder: FrameDecoder,
}

impl FakeAgent {
    /// The host's end and the agent's, which has said Hello.
    pub(crate) async fn pair() -> (UnixStream, Self) {
        let (ours, stream) = UnixStream::pair().unwrap();
        let mut agent = Self {
            stream,
            decoder: FrameDecoder::default(),
        };
        agent.send(&wire::hello("agent")).await;
        (ours, agent)
    }

    /// Takes the host's Hello.
    pub(crate) async fn hello(&mut self) {
        let _: wire::proto::Hello = self.next().await;
    }

    /// The next message, which comes.
    pub(crate) async fn next<M: prost::Message + Default>(&mut self) -> M {
        self.next_or_end().await.unwrap()
    }

    /// The next message, or `None` at the end of the connection.
    pub(crate) async fn next_or_end<M: prost::Message + Default>(&mut self) -> Option<M> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            if !fill(&mut self.stream, &mut self.decoder).await.unwrap() {
                return None;
            }
        }
    }

    pub(crate) async fn send<M: prost::Message>(&mut self, message: &M) {
        let frame = wire::encode(message).unwrap();
        self.stream.write_all(&frame).await.unwrap();
    }
}
