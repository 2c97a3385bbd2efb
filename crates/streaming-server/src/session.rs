//! A request of the back end joined with the connection of its client.

use crate::backend::{PortForwardRequest, Streams};
use crate::command::{self, ClientStreams, Command};
use crate::forward::{self, Target};
use crate::negotiate::{CommandProtocol, ForwardProtocol, Transport};
use crate::peer::Peer;
use crate::place::Place;
use crate::room::Room;
use crate::spdy::{self, NewStream, Reset};
use crate::status::StatusForm;
use crate::urls::Request;
use crate::websocket::{self, Channels};
use bytes::Bytes;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Numbers of the WebSocket channels of exec and attach.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Most ports that a WebSocket client gets channels for.
const MAX_PORTS: usize = 100;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Command(CommandProtocol),
    Forward(ForwardProtocol),
}

/// A session that is agreed on.
pub(crate) struct Agreed {
    pub(crate) request: Request,
    pub(crate) transport: Transport,
    pub(crate) protocol: Protocol,
}

impl Place {
    /// Serves a session to its end.
    pub(crate) async fn serve<S>(&self, agreed: Agreed, wire: S, peer: &Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Agreed {
            request,
            transport,
            protocol,
        } = agreed;
        match (request, protocol) {
            (Request::Exec(request), Protocol::Command(protocol)) => {
                let command = Command::Exec(request);
                self.command(command, transport, protocol, wire, peer).await;
            }
            (Request::Attach(request), Protocol::Command(protocol)) => {
                let command = Command::Attach(request);
                self.command(command, transport, protocol, wire, peer).await;
            }
            (Request::PortForward(request), Protocol::Forward(protocol)) => {
                self.forward(request, transport, protocol, wire, peer).await;
            }
            // The URL decides both.
            (Request::PortForward(_), Protocol::Command(_))
            | (Request::Exec(_) | Request::Attach(_), Protocol::Forward(_)) => {}
        }
    }

    async fn command<S>(
        &self,
        command: Command,
        transport: Transport,
        protocol: CommandProtocol,
        wire: S,
        peer: &Peer,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let streams = command.streams();
        let room = Room::of_command(self.spill.as_ref(), &self.limits);
        match transport {
            Transport::Spdy => {
                let work = async |new| {
                    let wait = self.limits.stream_creation;
                    match timeout(wait, collect(new, streams, protocol)).await {
                        Ok(Some(client)) => command::serve(client, command, self).await,
                        Ok(None) => {}
                        Err(_) => tracing::info!(?wait, "a client did not open its streams"),
                    }
                };
                spdy::serve(wire, room, peer, &self.limits, work).await;
            }
            Transport::WebSocket { .. } => {
                let socket = websocket::accept(wire).await;
                let readable = [streams.stdin, false, false, false, true];
                let work = async |channels| {
                    let client = take(channels, streams, protocol).await;
                    command::serve(client, command, self).await;
                };
                let codec = protocol.codec();
                websocket::serve(socket, codec, &readable, &room, peer, &self.limits, work).await;
            }
        }
    }

    async fn forward<S>(
        &self,
        request: PortForwardRequest,
        transport: Transport,
        protocol: ForwardProtocol,
        wire: S,
        peer: &Peer,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let target = Target {
            backend: Arc::clone(&self.backend),
            sandbox: request.sandbox,
            limits: self.limits,
            ending: self.ending.clone(),
        };
        let limits = &self.limits;
        let room = Room::of_forward(self.spill.as_ref(), limits);
        let pairs = |new| forward::serve(target.clone(), new);
        match (transport, protocol) {
            (Transport::WebSocket { .. }, ForwardProtocol::Pairs) => {
                let socket = websocket::accept(wire).await;
                let (inner, carry) = websocket::tunnel(socket);
                let mut carry = pin!(carry);
                tokio::select! {
                    () = spdy::serve(inner, room, peer, limits, pairs) => {
                        let _ = timeout(limits.linger, carry).await;
                    }
                    () = &mut carry => {}
                }
            }
            (Transport::WebSocket { .. }, ForwardProtocol::Channels(codec)) => {
                let socket = websocket::accept(wire).await;
                let ports = request.ports;
                let readable = [true, false].repeat(ports.len().min(MAX_PORTS));
                let work = |channels| forward::serve_ports(target, pair_up(channels, &ports));
                websocket::serve(socket, codec, &readable, &room, peer, limits, work).await;
            }
            (Transport::Spdy, _) => spdy::serve(wire, room, peer, limits, pairs).await,
        }
    }
}

/// Waits for the streams that a SPDY client opens for a command.
async fn collect(
    mut new: mpsc::Receiver<NewStream>,
    streams: Streams,
    protocol: CommandProtocol,
) -> Option<ClientStreams> {
    let (mut stdin, mut stdout, mut stderr) = (None, None, None);
    let (mut resize, mut error) = (None, None);
    let has_resize = streams.terminal && protocol.version >= 3;
    loop {
        let done = stdin.is_some() == streams.stdin
            && stdout.is_some() == streams.stdout
            && stderr.is_some() == streams.stderr
            && resize.is_some() == has_resize;
        if let (true, Some(error)) = (done, error.take_if(|_| done)) {
            return Some(ClientStreams {
                stdin,
                stdout,
                stderr,
                resize,
                error,
                form: form(protocol),
            });
        }
        let stream = new.recv().await?;
        let kind = stream.headers.get("streamtype").unwrap_or_default();
        let fits = match kind {
            "stdin" => streams.stdin && stdin.is_none(),
            "stdout" => streams.stdout && stdout.is_none(),
            "stderr" => streams.stderr && stderr.is_none(),
            "resize" => has_resize && resize.is_none(),
            "error" => error.is_none(),
            _ => false,
        };
        if !fits {
            tracing::debug!(kind, "a client's stream is refused");
            stream.refuse(Reset::Refused).await;
            continue;
        }
        let kind = kind.to_owned();
        let (input, output) = stream.accept().await;
        match kind.as_str() {
            "stdin" => stdin = Some(input),
            "stdout" => stdout = Some(output),
            "stderr" => stderr = Some(output),
            "resize" => resize = Some(input),
            _ => error = Some(output),
        }
    }
}

/// The channels of a WebSocket client for a command; tells it that they are there.
async fn take(
    mut channels: Channels,
    streams: Streams,
    protocol: CommandProtocol,
) -> ClientStreams {
    let first = match streams {
        Streams { stdout: true, .. } => STDOUT,
        Streams { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    let _ = channels.output(first).send(Bytes::new()).await;
    ClientStreams {
        stdin: channels.input(STDIN),
        stdout: streams.stdout.then(|| channels.output(STDOUT)),
        stderr: streams.stderr.then(|| channels.output(STDERR)),
        resize: channels.input(RESIZE).filter(|_| streams.terminal),
        error: channels.output(ERROR),
        form: form(protocol),
    }
}

fn form(protocol: CommandProtocol) -> StatusForm {
    if protocol.version >= 4 {
        StatusForm::Object
    } else {
        StatusForm::Text
    }
}

/// Each port with its two channels.
fn pair_up(mut channels: Channels, ports: &[u16]) -> Vec<forward::Port> {
    let numbers = (0..=u8::MAX).step_by(2);
    let with_channels = ports.iter().take(MAX_PORTS).zip(numbers);
    with_channels
        .filter_map(|(&port, data)| {
            Some(forward::Port {
                port,
                input: channels.input(data)?,
                data: channels.output(data),
                error: channels.output(data + 1),
            })
        })
        .collect()
}
