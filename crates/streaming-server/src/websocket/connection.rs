//! One connection with channels: reader, writer and the work that uses the
//! channels, as one task.

use super::channel::{ChannelError, Codec, Said};
use crate::input::{Input, InputSender, input};
use crate::limits::Limits;
use crate::output::{self, Gone};
use crate::peer::Peer;
use crate::room::Room;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Messages that may wait.
const QUEUE: usize = 16;
/// Most bytes in a message.
const MAX_DATA: usize = 32 << 10;

/// The channels of a connection, each to be taken once.
pub(crate) struct Channels {
    inputs: Vec<Option<Input>>,
    codec: Codec,
    queue: mpsc::Sender<Message>,
}

impl Channels {
    /// What the client says on a channel that it may speak on.
    pub(crate) fn input(&mut self, channel: u8) -> Option<Input> {
        self.inputs.get_mut(usize::from(channel))?.take()
    }

    /// What is said to it on a channel.
    pub(crate) fn output(&self, channel: u8) -> output::Output {
        output::Output::WebSocket(Output {
            channel,
            codec: self.codec,
            queue: self.queue.clone(),
        })
    }
}

/// What goes to the client on one channel.
#[derive(Debug)]
pub(crate) struct Output {
    channel: u8,
    codec: Codec,
    queue: mpsc::Sender<Message>,
}

impl Output {
    /// Sends bytes, also none; waits while the client takes no more.
    pub(crate) async fn send(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        loop {
            let piece = bytes.split_to(bytes.len().min(MAX_DATA));
            let message = self.codec.write(self.channel, &piece);
            self.queue.send(message).await.map_err(|_| Gone)?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Why a connection is read no further.
#[derive(Debug, thiserror::Error)]
enum ReadEnd {
    #[error("the client has closed the connection")]
    Closed,
    #[error("the connection broke, or the client does not keep to WebSocket")]
    Broken(#[from] Error),
    #[error("the client does not keep to its channel protocol")]
    Protocol(#[from] ChannelError),
}

impl ReadEnd {
    /// What the client is told, if it is still there.
    fn close(&self) -> Option<CloseFrame> {
        let code = match self {
            Self::Closed => return None,
            Self::Broken(Error::Capacity(_)) => CloseCode::Size,
            Self::Broken(Error::Utf8(_)) => CloseCode::Invalid,
            Self::Broken(Error::Protocol(_)) | Self::Protocol(_) => CloseCode::Protocol,
            Self::Broken(_) => return None,
        };
        let cause = std::error::Error::source(self);
        let reason = cause.map(ToString::to_string).unwrap_or_default();
        // A close frame has at most 125 bytes.
        let reason: String = reason.chars().filter(char::is_ascii).take(120).collect();
        Some(CloseFrame {
            code,
            reason: reason.into(),
        })
    }
}

/// Serves a connection until `work` has done with its channels, or the client is
/// gone; then `work` is dropped. `readable` says of each channel whether the client
/// may speak on it; what it says on others is dropped.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin, F: Future<Output = ()>>(
    socket: WebSocketStream<S>,
    codec: Codec,
    readable: &[bool],
    room: &Arc<Room>,
    peer: &Peer,
    limits: &Limits,
    work: impl FnOnce(Channels) -> F,
) {
    let (sink, mut messages) = socket.split();
    let (queue, queued) = mpsc::channel(QUEUE);
    let (senders, inputs) = readable
        .iter()
        .map(|&readable| readable.then(|| input(room, None)).unzip())
        .collect::<(Vec<_>, Vec<_>)>();
    let channels = Channels {
        inputs,
        codec,
        queue: queue.clone(),
    };
    let mut writer = pin!(write(sink, queued, peer));
    // An unasked pong is answered by nobody (RFC 6455, 5.5.3). A full queue speaks to
    // the client as well.
    let nudge = || drop(queue.try_send(Message::Pong(Bytes::new())));
    let gone = || peer.gone(limits.nudge, nudge);
    let close = {
        let mut work = pin!(work(channels));
        tokio::select! {
            end = read(&mut messages, codec, senders, peer, gone) => {
                tracing::debug!(%end, "WebSocket connection ended");
                let Some(close) = end.close() else { return };
                close
            }
            () = &mut writer => return,
            () = peer.idle(limits.idle) => {
                tracing::info!(limit = ?limits.idle, "idle WebSocket connection ended");
                CloseFrame { code: CloseCode::Away, reason: "idle for too long".into() }
            }
            () = &mut work => CloseFrame { code: CloseCode::Normal, reason: "".into() },
        }
    };
    // All that was said is written; the client answers the close.
    let last = async {
        let _ = queue.send(Message::Close(Some(close))).await;
    };
    let discard = async { while let Some(Ok(_)) = messages.next().await {} };
    let all = async { tokio::join!(last, writer, discard) };
    let _ = timeout(limits.linger, all).await;
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut queue: mpsc::Receiver<Message>,
    peer: &Peer,
) {
    while let Some(message) = queue.recv().await {
        let (last, is_nudge) = (message.is_close(), message.is_pong());
        if sink.send(message).await.is_err() || last {
            return;
        }
        if !is_nudge {
            peer.moved();
        }
    }
}

async fn read<S: AsyncRead + AsyncWrite + Unpin, F: Future<Output = ()>>(
    messages: &mut SplitStream<WebSocketStream<S>>,
    codec: Codec,
    mut channels: Vec<Option<InputSender>>,
    peer: &Peer,
    gone: impl Fn() -> F,
) -> ReadEnd {
    let count = u8::try_from(channels.len()).unwrap_or(u8::MAX);
    loop {
        let message = match messages.next().await {
            None | Some(Ok(Message::Close(_))) => return ReadEnd::Closed,
            Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) => return ReadEnd::Closed,
            Some(Err(error)) => return error.into(),
            Some(Ok(message)) => message,
        };
        peer.moved();
        let data = match message {
            Message::Binary(_) | Message::Text(_) => message.into_data(),
            _ => continue,
        };
        match codec.read(data, count) {
            Ok(Said::Data(channel, bytes)) => {
                let Some(Some(input)) = channels.get(usize::from(channel)) else {
                    continue;
                };
                tokio::select! {
                    biased;
                    () = input.send(bytes) => {}
                    // Nobody reads the connection while this waits.
                    () = gone() => return ReadEnd::Closed,
                }
            }
            Ok(Said::Close(channel)) => channels[usize::from(channel)] = None,
            Ok(Said::Nothing) => {}
            Err(error) => return error.into(),
        }
    }
}
