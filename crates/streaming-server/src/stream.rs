//! One stream of a connection, whatever the protocol: what comes from the peer,
//! bounded, and what goes to it.

use crate::{spdy, websocket};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Most bytes in one piece of input.
pub(crate) const PIECE: usize = 64 << 10;
/// What a piece costs beside its bytes.
const COST: usize = 128;
/// Most bytes that wait on one stream.
const STREAM_ROOM: usize = 256 << 10;
/// Most bytes that wait on all streams of a connection.
const CONNECTION_ROOM: usize = 1 << 20;

/// The stream or its connection is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has ended the stream")]
pub(crate) struct Gone;

/// Room for what waits on all streams of one connection.
pub(crate) fn connection_room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONNECTION_ROOM))
}

/// A stream's input. `taken` is told of each number of bytes that was taken.
pub(crate) fn input(
    connection: &Arc<Semaphore>,
    taken: Option<Box<dyn Fn(usize) + Send + Sync>>,
) -> (InputSender, Input) {
    let (pieces, received) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(STREAM_ROOM));
    let sender = InputSender {
        pieces,
        room: Arc::clone(&room),
        connection: Arc::clone(connection),
    };
    let input = Input {
        pieces: received,
        room,
        taken,
    };
    (sender, input)
}

/// A piece, and the room that it takes while it waits.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Where a connection's reader puts the input of a stream. Dropped: the peer has
/// said all.
#[derive(Debug)]
pub(crate) struct InputSender {
    pieces: mpsc::UnboundedSender<Result<Piece, Gone>>,
    room: Arc<Semaphore>,
    connection: Arc<Semaphore>,
}

impl InputSender {
    /// Hands on bytes; waits while too many wait already. What nobody wants any
    /// more is dropped.
    pub(crate) async fn send(&self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            // Less than either room has.
            let cost = u32::try_from(piece.len() + COST).unwrap_or(u32::MAX);
            let Ok(own) = Arc::clone(&self.room).acquire_many_owned(cost).await else {
                return;
            };
            let shared = Arc::clone(&self.connection).acquire_many_owned(cost);
            let shared = tokio::select! {
                biased;
                () = self.pieces.closed() => return,
                shared = shared => shared,
            };
            let Ok(shared) = shared else { return };
            let piece = Piece {
                bytes: piece,
                _room: (own, shared),
            };
            if self.pieces.send(Ok(piece)).is_err() {
                return;
            }
        }
    }

    /// The peer has broken the stream off.
    pub(crate) fn reset(&self) {
        let _ = self.pieces.send(Err(Gone));
    }
}

/// What comes from the peer on one stream.
pub(crate) struct Input {
    pieces: mpsc::UnboundedReceiver<Result<Piece, Gone>>,
    room: Arc<Semaphore>,
    taken: Option<Box<dyn Fn(usize) + Send + Sync>>,
}

impl Input {
    /// The next bytes; `None`: the peer has said all. Nothing is lost when the
    /// future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        let Some(piece) = self.pieces.recv().await.transpose()? else {
            return Ok(None);
        };
        if let Some(taken) = &self.taken {
            taken(piece.bytes.len());
        }
        Ok(Some(piece.bytes))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // Wakes a reader that waits for room.
        self.room.close();
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn input_waits_for_its_reader_and_nothing_is_lost() {
        let connection = connection_room();
        let (sender, mut input) = input(&connection, None);
        let sent: Vec<u8> = (0..STREAM_ROOM * 3)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let bytes = Bytes::from(sent.clone());
        let writer = tokio::spawn(async move { sender.send(bytes).await });
        tokio::task::yield_now().await;
        assert!(!writer.is_finished());
        let mut got = Vec::new();
        while let Some(piece) = input.next().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        assert!(got == sent);
        drop(input);
        assert_eq!(connection.available_permits(), CONNECTION_ROOM);
    }

    // Without a runtime, which makes tasks pause that do much.
    #[test]
    fn many_small_pieces_take_room_as_large_ones_do() {
        let connection = connection_room();
        let (sender, input) = input(&connection, None);
        let mut pieces = 0;
        while sender
            .send(Bytes::from_static(b"x"))
            .now_or_never()
            .is_some()
        {
            pieces += 1;
        }
        assert_eq!(pieces, STREAM_ROOM / (1 + COST));
        drop(input);
    }

    #[tokio::test]
    async fn reader_that_goes_away_lets_its_sender_go_on() {
        let connection = connection_room();
        let (sender, input) = input(&connection, None);
        let sending = sender.send(Bytes::from(vec![0; STREAM_ROOM * 2]));
        let (_, ()) = tokio::join!(sending, async {
            tokio::task::yield_now().await;
            drop(input);
        });
    }

    #[tokio::test]
    async fn full_connection_stalls_and_a_dropped_stream_frees_it() {
        let connection = connection_room();
        let mut full = Vec::new();
        for _ in 0..8 {
            let (sender, input) = input(&connection, None);
            let _ = sender
                .send(Bytes::from(vec![0; STREAM_ROOM]))
                .now_or_never();
            full.push(input);
        }
        let (sender, mut last) = input(&connection, None);
        let mut waiting = std::pin::pin!(sender.send(Bytes::from(vec![7; PIECE])));
        assert!(waiting.as_mut().now_or_never().is_none());
        full.clear();
        waiting.await;
        assert_eq!(last.next().await.unwrap().unwrap().len(), PIECE);
    }

    #[tokio::test]
    async fn reset_comes_after_what_was_sent() {
        let (sender, mut input) = input(&connection_room(), None);
        sender.send(Bytes::from_static(b"a")).await;
        sender.reset();
        assert_eq!(input.next().await.unwrap().unwrap(), "a");
        assert_eq!(input.next().await, Err(Gone));
    }
}
