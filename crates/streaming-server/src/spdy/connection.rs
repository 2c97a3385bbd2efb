//! One connection: reader, writer and the work that uses its streams, as one task.

use super::frame::{Goodbye, Reset};
use super::headers::Headers;
use super::reader::{ReadEnd, Reader};
use super::streams::Streams;
use super::writer::{self, Frame, Output, QUEUE};
use crate::input::Input;
use crate::limits::Limits;
use crate::output;
use crate::peer::Peer;
use crate::room::Room;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Opened streams that may wait to be looked at.
const OPENED: usize = 16;

/// A stream that the client has opened, and that waits for an answer.
pub(crate) struct NewStream {
    pub(crate) headers: Headers,
    pub(super) input: Input,
    pub(super) output: Output,
}

impl NewStream {
    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        self.output.stream
    }

    /// Takes it.
    pub(crate) async fn accept(self) -> (Input, output::Output) {
        let reply = Frame::Reply(self.output.stream);
        let _ = self.output.queue.send(reply).await;
        (self.input, output::Output::Spdy(self.output))
    }

    /// Ends it.
    pub(crate) async fn refuse(self, reason: Reset) {
        self.output.streams.remove(self.output.stream);
        self.output.reset(reason).await;
    }
}

/// Serves a connection until `work` has done with its streams, or the client is
/// gone; then `work` is dropped.
pub(crate) async fn serve<F: Future<Output = ()>>(
    wire: impl AsyncRead + AsyncWrite,
    room: Arc<Room>,
    peer: &Peer,
    limits: &Limits,
    work: impl FnOnce(mpsc::Receiver<NewStream>) -> F,
) {
    let (mut read_half, write_half) = tokio::io::split(wire);
    let streams = Arc::new(Streams::new());
    let (queue, queued) = mpsc::channel(QUEUE);
    let (opened, new_streams) = mpsc::channel(OPENED);
    let mut writer = pin!(writer::write(write_half, queued, &streams, peer));
    let goodbye = {
        let streams = Arc::clone(&streams);
        let (queue, nudge) = (queue.clone(), limits.nudge);
        let mut reader = Reader::new(&mut read_half, room, streams, queue, opened, peer, nudge);
        let mut work = pin!(work(new_streams));
        tokio::select! {
            end = reader.run() => match end {
                ReadEnd::Closed | ReadEnd::Broken(_) => {
                    tracing::debug!(%end, "SPDY connection ended");
                    return;
                }
                ReadEnd::Protocol(error) => {
                    tracing::info!(%error, "SPDY connection refused");
                    Goodbye::ProtocolError
                }
            },
            _ = &mut writer => return,
            () = peer.idle(limits.idle) => {
                tracing::info!(limit = ?limits.idle, "idle SPDY connection ended");
                Goodbye::Ok
            }
            () = &mut work => Goodbye::Ok,
        }
    };
    // All that was said is written; then the client closes. What it sends meanwhile
    // is read: else the kernel would throw away what is on the way to it.
    let last = async {
        let _ = queue.send(Frame::Last(goodbye)).await;
    };
    let all = async { tokio::join!(last, writer, discard(&mut read_half)) };
    let _ = timeout(limits.linger, all).await;
}

/// Reads to the end.
async fn discard(wire: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 4096];
    while wire.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
}
