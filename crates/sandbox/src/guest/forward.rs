//! The wire of one connection to a port of the pod: raw bytes once it is open.

use super::client::{GuestError, greet, read_message};
use super::vsock::connect_patiently;
use guest_api::proto::{PortForward, PortForwardOpened};
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use wire::WireError;

/// Connects to `port` of the pod; from then on the stream is that connection.
pub(crate) async fn open(socket: &Path, port: u16) -> Result<UnixStream, GuestError> {
    let stream = connect_patiently(socket, guest_api::FORWARD_PORT).await;
    start(stream.map_err(GuestError::Connect)?, port).await
}

/// The same, on a stream that reached the agent.
async fn start(mut stream: UnixStream, port: u16) -> Result<UnixStream, GuestError> {
    let early = greet(&mut stream).await?.into_rest();
    if !early.is_empty() {
        return Err(GuestError::WrongAnswer);
    }
    let frame = wire::encode(&PortForward { port: port.into() })?;
    let sent = stream.write_all(&frame).await;
    sent.map_err(WireError::from)?;
    match read_message::<PortForwardOpened>(&mut stream).await?.error {
        None => Ok(stream),
        Some(error) => Err(GuestError::refused(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::fake_agent::FakeAgent;
    use tokio::io::AsyncReadExt;

    async fn answered(opened: PortForwardOpened, rest: &[u8]) -> Result<UnixStream, GuestError> {
        let (ours, mut agent) = FakeAgent::pair().await;
        let served = async {
            agent.hello().await;
            let request: PortForward = agent.next().await;
            assert_eq!(request.port, 8080);
            agent.send(&opened).await;
            agent.stream.write_all(rest).await.unwrap();
            drop(agent);
        };
        tokio::join!(start(ours, 8080), served).0
    }

    #[tokio::test]
    async fn bytes_behind_the_answer_are_the_connections() {
        let mut stream = answered(PortForwardOpened { error: None }, b"220 hello\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "220 hello\r\n");
    }

    #[tokio::test]
    async fn refusal_is_told_in_the_agents_words() {
        let error = wire::proto::Error {
            message: "port 8080: connection refused".into(),
            ..Default::default()
        };
        let error = answered(PortForwardOpened { error: Some(error) }, b"").await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("port 8080: connection refused"), "{error}");
    }
}
