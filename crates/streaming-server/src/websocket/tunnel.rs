//! A SPDY connection in the messages of a WebSocket connection.

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Bytes that may wait either way, and most of a message.
const BUFFER: usize = 64 << 10;

/// The inner connection, and the work that carries it: to be done while the inner
/// one is served, and after it until it returns.
pub(crate) fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
) -> (DuplexStream, impl Future<Output = ()>) {
    let (inner, outer) = duplex(BUFFER);
    (inner, carry(socket, outer))
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<S>, outer: DuplexStream) {
    let (mut sink, mut messages) = socket.split();
    let (mut read, mut write) = split(outer);
    let inward = async {
        while let Some(Ok(message)) = messages.next().await {
            let bytes = match message {
                Message::Binary(_) | Message::Text(_) => message.into_data(),
                Message::Close(_) => break,
                _ => continue,
            };
            if write.write_all(&bytes).await.is_err() {
                // The inner connection has ended; the client is to know.
                continue;
            }
        }
        // The client is gone.
        let _ = write.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BUFFER);
            match read.read_buf(&mut buffer).await {
                Ok(len) if len > 0 => {
                    let message = Message::Binary(buffer.split().freeze());
                    if sink.send(message).await.is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        let _ = sink.close().await;
    };
    tokio::join!(inward, outward);
}
