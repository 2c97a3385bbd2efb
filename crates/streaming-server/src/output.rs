//! What goes to the peer on one stream, whatever the protocol.

use crate::{spdy, websocket};
use bytes::Bytes;

/// The stream or its connection is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has ended the stream")]
pub(crate) struct Gone;

/// What goes to the peer on one stream.
#[derive(Debug)]
pub(crate) enum Output {
    Spdy(spdy::Output),
    WebSocket(websocket::Output),
}

impl Output {
    /// Sends bytes; waits while the peer takes no more.
    pub(crate) async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        match self {
            Self::Spdy(output) => output.send(bytes).await,
            Self::WebSocket(output) => output.send(bytes).await,
        }
    }

    /// There is no more. The peer may go on.
    pub(crate) async fn finish(&mut self) {
        match self {
            Self::Spdy(output) => output.finish().await,
            // Its protocols know no end of one stream.
            Self::WebSocket(_) => {}
        }
    }

    /// Ends the stream both ways, should the peer not have done so.
    pub(crate) async fn end(self) {
        match self {
            Self::Spdy(output) => output.end().await,
            Self::WebSocket(_) => {}
        }
    }
}
