//! A WebSocket client: the handshake by hand, then the crate's other role.

use super::soon;
use super::spdy_client::ask;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use std::collections::HashMap;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

type Speaker = SplitSink<WebSocketStream<TcpStream>, Message>;
type Listener = SplitStream<WebSocketStream<TcpStream>>;

pub(super) struct WebSocketClient<S = WebSocketStream<TcpStream>> {
    pub(super) socket: S,
}

/// What asks for WebSocket with one protocol.
pub(super) fn upgrade(protocol: &str) -> String {
    format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    )
}

impl WebSocketClient {
    pub(super) async fn connect(url: &str, protocol: &str) -> Self {
        let (socket, head) = ask(url, &upgrade(protocol)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        assert!(head.contains(protocol), "{head}");
        let socket = WebSocketStream::from_raw_socket(socket, Role::Client, None).await;
        Self { socket }
    }

    /// One that speaks and one that listens.
    pub(super) fn split(self) -> (WebSocketClient<Speaker>, WebSocketClient<Listener>) {
        let (sink, stream) = self.socket.split();
        (
            WebSocketClient { socket: sink },
            WebSocketClient { socket: stream },
        )
    }
}

impl<S: Sink<Message, Error = Error> + Unpin> WebSocketClient<S> {
    pub(super) async fn send(&mut self, message: &[u8]) {
        let message = Message::Binary(Bytes::copy_from_slice(message));
        self.socket.send(message).await.unwrap();
    }

    /// Bytes on a channel.
    pub(super) async fn say(&mut self, channel: u8, bytes: &[u8]) {
        self.send(&[&[channel], bytes].concat()).await;
    }
}

impl<S: Stream<Item = Result<Message, Error>> + Unpin> WebSocketClient<S> {
    /// The next message's channel and bytes.
    pub(super) async fn next(&mut self) -> (u8, Vec<u8>) {
        let message = self.socket.next().await.unwrap().unwrap().into_data();
        (message[0], message[1..].to_vec())
    }

    /// What came on each channel to the connection's end, and the close code.
    pub(super) async fn heard(&mut self) -> (HashMap<u8, Vec<u8>>, u16) {
        let mut heard: HashMap<u8, Vec<u8>> = HashMap::new();
        let mut code = 0;
        while let Some(Ok(message)) = soon(self.socket.next()).await {
            match message {
                Message::Close(Some(frame)) => code = frame.code.into(),
                message => {
                    let bytes = message.into_data();
                    heard.entry(bytes[0]).or_default().extend(&bytes[1..]);
                }
            }
        }
        (heard, code)
    }
}
