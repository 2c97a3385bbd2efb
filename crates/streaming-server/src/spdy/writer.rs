//! The side of a connection that speaks: one queue of frames, written in order by
//! one task, and the outputs of streams that fill it.

use super::frame::{
    Goodbye, HEAD, Reset, data_head, go_away, no_settings, rst_stream, syn_reply, window_update,
};
use super::headers::HeaderWriter;
use super::streams::Streams;
use crate::output::Gone;
use crate::peer::Peer;
use bytes::{Buf, Bytes};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Most bytes in a data frame.
const MAX_DATA: usize = 32 << 10;
/// Frames that may wait.
pub(super) const QUEUE: usize = 16;

/// What goes to the client.
#[derive(Debug)]
pub(super) enum Frame {
    /// Complete.
    Control(Vec<u8>),
    /// The reply to a SYN_STREAM: compressed as it is written.
    Reply(u32),
    Data([u8; HEAD], Bytes),
    /// A SETTINGS frame without a setting, to which nobody answers: a PING makes the
    /// client write, which may be what it waits for, and then it reads no more either.
    Nothing,
    /// GOAWAY; nothing comes after it.
    Last(Goodbye),
}

pub(super) type Queue = mpsc::Sender<Frame>;

/// Writes what is queued and the credits, up to the last frame; then closes the
/// connection's way to the client.
pub(super) async fn write(
    mut wire: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Frame>,
    streams: &Streams,
    peer: &Peer,
) -> io::Result<()> {
    let mut headers = HeaderWriter::new();
    loop {
        let frame = tokio::select! {
            biased;
            () = streams.credited.notified() => {
                for (stream, delta) in streams.take_credits() {
                    wire.write_all(&window_update(stream, delta)).await?;
                }
                wire.flush().await?;
                continue;
            }
            frame = queue.recv() => frame,
        };
        match frame {
            Some(Frame::Control(bytes)) => wire.write_all(&bytes).await?,
            Some(Frame::Reply(stream)) => {
                let reply = syn_reply(stream, &headers.empty());
                wire.write_all(&reply).await?;
            }
            Some(Frame::Data(head, body)) => {
                wire.write_all_buf(&mut head.as_slice().chain(body)).await?;
            }
            Some(Frame::Nothing) => {
                wire.write_all(&no_settings()).await?;
                wire.flush().await?;
                // The connection is as idle as it was.
                continue;
            }
            Some(Frame::Last(how)) => {
                wire.write_all(&go_away(streams.last(), how)).await?;
                return wire.shutdown().await;
            }
            None => return wire.shutdown().await,
        }
        wire.flush().await?;
        peer.moved();
    }
}

/// What goes to the client on one stream.
#[derive(Debug)]
pub(crate) struct Output {
    pub(super) stream: u32,
    pub(super) streams: Arc<Streams>,
    pub(super) queue: Queue,
}

impl Output {
    /// Sends bytes; waits while the client takes no more.
    pub(crate) async fn send(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let wanted = bytes.len().min(MAX_DATA);
            let room = self.streams.room(self.stream, wanted).await?;
            let body = bytes.split_to(room);
            self.data(body, false).await?;
        }
        Ok(())
    }

    /// There is no more. The client may go on.
    pub(crate) async fn finish(&mut self) {
        if self.streams.finish(self.stream) {
            let _ = self.data(Bytes::new(), true).await;
        }
    }

    /// Ends the stream both ways, should the client not have done so.
    pub(crate) async fn end(mut self) {
        self.finish().await;
        if self.streams.remove(self.stream) {
            self.reset(Reset::Cancel).await;
        }
    }

    pub(super) async fn reset(&self, reason: Reset) {
        let frame = Frame::Control(rst_stream(self.stream, reason));
        let _ = self.queue.send(frame).await;
    }

    async fn data(&self, body: Bytes, fin: bool) -> Result<(), Gone> {
        let head = data_head(self.stream, fin, body.len());
        let frame = Frame::Data(head, body);
        self.queue.send(frame).await.map_err(|_| Gone)
    }
}
