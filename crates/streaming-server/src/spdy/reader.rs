//! The side of a connection that listens: frames to streams.

use super::connection::NewStream;
use super::frame::{Control, FrameError, HEAD, Head, Reset, ping, rst_stream};
use super::headers::{HeaderReader, Headers};
use super::streams::{Streams, Target};
use super::writer::{Frame, Output, Queue};
use crate::input::{PIECE, input};
use crate::peer::Peer;
use crate::room::Room;
use bytes::BytesMut;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

/// Most streams at once.
pub(super) const MAX_STREAMS: usize = 1024;
/// The buffer is made anew where it has less room than this.
const LITTLE: usize = 4 << 10;

/// Why a connection is read no further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadEnd {
    /// The client closed it, or said that it will.
    #[error("the client has closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    /// The client does not keep to the protocol.
    #[error("the client does not keep to SPDY/3.1")]
    Protocol(#[from] FrameError),
}

pub(super) struct Reader<'a, R> {
    pub(super) wire: R,
    pub(super) buffer: BytesMut,
    pub(super) headers: HeaderReader,
    pub(super) room: Arc<Room>,
    pub(super) streams: Arc<Streams>,
    pub(super) queue: Queue,
    pub(super) opened: mpsc::Sender<NewStream>,
    pub(super) peer: &'a Peer,
    pub(super) nudge: Duration,
}

impl<'a, R: AsyncRead + Unpin> Reader<'a, R> {
    pub(super) fn new(
        wire: R,
        room: Arc<Room>,
        streams: Arc<Streams>,
        queue: Queue,
        opened: mpsc::Sender<NewStream>,
        peer: &'a Peer,
        nudge: Duration,
    ) -> Self {
        Self {
            wire,
            buffer: BytesMut::new(),
            headers: HeaderReader::new(),
            room,
            streams,
            queue,
            opened,
            peer,
            nudge,
        }
    }

    /// Reads until the connection's end.
    pub(super) async fn run(&mut self) -> ReadEnd {
        loop {
            if let Err(end) = self.frame().await {
                return end;
            }
            self.peer.moved();
        }
    }

    async fn frame(&mut self) -> Result<(), ReadEnd> {
        self.fill(HEAD).await?;
        let mut head = [0; HEAD];
        head.copy_from_slice(&self.buffer.split_to(HEAD));
        match Head::parse(head)? {
            Head::Data { stream, fin, len } => self.data(stream, fin, len).await,
            Head::Control { kind, flags, len } => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                self.fill(len).await?;
                let payload = self.buffer.split_to(len);
                let control = Control::parse(kind, flags, &payload, &mut self.headers)?;
                drop(payload);
                self.control(control).await
            }
        }
    }

    /// Reads until the buffer has that many bytes.
    async fn fill(&mut self, len: usize) -> Result<(), ReadEnd> {
        while self.buffer.len() < len {
            if self.buffer.capacity() - self.buffer.len() < LITTLE {
                self.buffer.reserve(PIECE);
            }
            if self.wire.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReadEnd::Closed);
            }
        }
        Ok(())
    }

    async fn data(&mut self, stream: u32, fin: bool, len: u32) -> Result<(), ReadEnd> {
        let target = match self.streams.target(stream) {
            Target::Input(input) => Some(input),
            Target::Over => None,
            Target::Unknown => {
                reset(&self.queue, stream, Reset::InvalidStream).await;
                None
            }
        };
        let mut rest = usize::try_from(len).unwrap_or(usize::MAX);
        while rest > 0 {
            self.fill(1).await?;
            let piece = self.buffer.len().min(rest);
            let bytes = self.buffer.split_to(piece).freeze();
            rest -= piece;
            self.peer.moved();
            if let Some(input) = &target {
                // A full queue speaks to the client as well.
                let nudge = || drop(self.queue.try_send(Frame::Nothing));
                tokio::select! {
                    biased;
                    () = input.send(bytes) => {}
                    // Nobody reads the connection while this waits.
                    () = self.peer.gone(self.nudge, nudge) => return Err(ReadEnd::Closed),
                }
            }
        }
        drop(target);
        if fin {
            self.streams.end_input(stream);
        }
        Ok(())
    }

    async fn control(&mut self, control: Control) -> Result<(), ReadEnd> {
        match control {
            Control::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => self.open(stream, fin, unidirectional, headers).await,
            Control::RstStream { stream } => {
                self.streams.remove(stream);
            }
            Control::InitialWindow(window) => self.streams.set_initial_window(window),
            Control::WindowUpdate { stream, delta } => {
                if !self.streams.widen(stream, delta) {
                    self.streams.remove(stream);
                    reset(&self.queue, stream, Reset::FlowControl).await;
                }
            }
            Control::Ping(id) if id % 2 == 1 => say(&self.queue, ping(id)).await,
            Control::Headers { stream, fin: true } => self.streams.end_input(stream),
            Control::GoAway => return Err(ReadEnd::Closed),
            Control::Ping(_) | Control::Headers { .. } | Control::Other => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, unidirectional: bool, headers: Headers) {
        if !self.streams.claim(stream) {
            return reset(&self.queue, stream, Reset::Protocol).await;
        }
        if self.streams.count() >= MAX_STREAMS {
            return reset(&self.queue, stream, Reset::Refused).await;
        }
        let streams = Arc::clone(&self.streams);
        let taken = move |bytes| streams.credit(stream, bytes);
        let (sender, input) = input(&self.room, Some(Box::new(taken)));
        let sender = (!fin).then_some(sender);
        self.streams.open(stream, sender, unidirectional);
        let output = Output {
            stream,
            streams: Arc::clone(&self.streams),
            queue: self.queue.clone(),
        };
        let new = NewStream {
            headers,
            input,
            output,
        };
        if let Err(unwanted) = self.opened.send(new).await {
            unwanted.0.refuse(Reset::Refused).await;
        }
    }
}

async fn reset(queue: &Queue, stream: u32, reason: Reset) {
    say(queue, rst_stream(stream, reason)).await;
}

async fn say(queue: &Queue, frame: Vec<u8>) {
    let _ = queue.send(Frame::Control(frame)).await;
}

/// Says whether bytes are frames, as far as they go: for the tests.
#[cfg(test)]
pub(crate) fn scan(bytes: &[u8]) -> Result<Vec<Control>, FrameError> {
    let mut headers = HeaderReader::new();
    let mut rest = bytes::Bytes::copy_from_slice(bytes);
    let mut found = Vec::new();
    while let Some(head) = rest.first_chunk::<HEAD>() {
        let head = Head::parse(*head)?;
        let _ = rest.split_to(HEAD);
        let (Head::Data { len, .. } | Head::Control { len, .. }) = head;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if rest.len() < len {
            break;
        }
        let payload = rest.split_to(len);
        if let Head::Control { kind, flags, .. } = head {
            found.push(Control::parse(kind, flags, &payload, &mut headers)?);
        }
    }
    Ok(found)
}
