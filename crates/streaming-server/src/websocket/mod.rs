//! The server's side of Kubernetes' WebSocket protocols: channels in the messages
//! of one connection, or a SPDY connection in them.

mod channel;
mod connection;
mod tunnel;

pub(crate) use channel::Codec;
pub(crate) use connection::{Channels, Output, serve};
pub(crate) use tunnel::tunnel;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Most bytes of one message of a client.
const MAX_MESSAGE: usize = 4 << 20;

/// A connection whose upgrade was answered.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(wire: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(16 << 10)
        .write_buffer_size(0);
    WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await
}
