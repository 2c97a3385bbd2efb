//! A SPDY client, byte by byte.

use super::soon;
use crate::spdy::{HeaderReader, HeaderWriter};
use std::collections::HashMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connects to a URL's host and asks; returns the connection and the answer's head.
pub(super) async fn ask(url: &str, headers: &str) -> (TcpStream, String) {
    let (host, path) = host_and_path(url);
    let mut socket = TcpStream::connect(host).await.unwrap();
    let head = ask_on(&mut socket, host, path, headers).await;
    (socket, head)
}

pub(super) fn host_and_path(url: &str) -> (&str, &str) {
    let (_, rest) = url.split_once("://").unwrap();
    rest.split_once('/').unwrap()
}

/// Asks on a connection; the answer's head.
pub(super) async fn ask_on<S>(socket: &mut S, host: &str, path: &str, headers: &str) -> String
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// What asks for SPDY with one protocol.
pub(super) fn upgrade(protocol: &str) -> String {
    format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n")
}

/// A frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Data(u32, bool, Vec<u8>),
    Reply(u32),
    Reset(u32, u32),
    Ping(u32),
    GoAway(u32),
    Window(u32, u32),
}

pub(super) struct SpdyClient {
    pub(super) socket: TcpStream,
    headers: HeaderWriter,
    replies: HeaderReader,
    next: u32,
}

/// All that came on a connection to its end.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) data: HashMap<u32, Vec<u8>>,
    /// Streams that were finished.
    pub(super) finished: Vec<u32>,
    pub(super) resets: Vec<(u32, u32)>,
    pub(super) goodbye: Option<u32>,
}

impl Heard {
    pub(super) fn text(&self, stream: u32) -> String {
        let bytes = self.data.get(&stream).cloned().unwrap_or_default();
        String::from_utf8(bytes).unwrap()
    }
}

impl SpdyClient {
    pub(super) async fn connect(url: &str, protocol: &str) -> Self {
        let (socket, head) = ask(url, &upgrade(protocol)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let head = head.to_lowercase();
        for line in [
            "connection: upgrade\r\n",
            "upgrade: spdy/3.1\r\n",
            &format!("x-stream-protocol-version: {protocol}\r\n"),
        ] {
            assert!(head.contains(line), "{line:?} in {head}");
        }
        Self {
            socket,
            headers: HeaderWriter::new(),
            replies: HeaderReader::new(),
            next: 1,
        }
    }

    /// Another handle that writes, for use while this one reads.
    pub(super) fn second_writer(&self) -> TcpStream {
        let socket = rustix::io::dup(&self.socket).unwrap();
        TcpStream::from_std(socket.into()).unwrap()
    }

    pub(super) async fn raw(&mut self, parts: &[&[u8]]) {
        self.socket.write_all(&parts.concat()).await.unwrap();
    }

    pub(super) async fn control(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let [.., x, y, z] = payload.len().to_be_bytes();
        let head = [0x80, 3, 0, kind, flags, x, y, z];
        self.raw(&[&head, payload]).await;
    }

    /// Opens a stream and waits for the reply; false: it was refused.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> (u32, bool) {
        let stream = self.syn(headers).await;
        loop {
            match self.frame().await.unwrap() {
                Frame::Reply(number) if number == stream => return (stream, true),
                Frame::Reset(number, _) if number == stream => return (stream, false),
                // Of others.
                Frame::Window(..) | Frame::Reset(..) | Frame::Data(_, true, _) => {}
                other => panic!("{other:?} instead of a reply"),
            }
        }
    }

    pub(super) async fn syn(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let block = self.headers.pairs(headers);
        let payload = [&stream.to_be_bytes()[..], &[0; 6], &block].concat();
        self.control(1, 0, &payload).await;
        stream
    }

    /// Opens the streams of a command; they are numbered 1, 3, 5, ...
    pub(super) async fn open_types(&mut self, types: &[&str]) {
        for kind in types {
            let (_, taken) = self.open(&[("streamtype", kind)]).await;
            assert!(taken, "{kind}");
        }
    }

    pub(super) async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
        let [.., x, y, z] = bytes.len().to_be_bytes();
        let head = [u8::from(fin), x, y, z];
        self.raw(&[&stream.to_be_bytes(), &head, bytes]).await;
    }

    pub(super) async fn reset(&mut self, stream: u32) {
        let payload = [stream.to_be_bytes(), 5u32.to_be_bytes()].concat();
        self.control(3, 0, &payload).await;
    }

    pub(super) async fn window(&mut self, stream: u32, delta: u32) {
        let payload = [stream.to_be_bytes(), delta.to_be_bytes()].concat();
        self.control(9, 0, &payload).await;
    }

    /// The next frame; `None`: the connection has ended.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 8];
        self.socket.read_exact(&mut head).await.ok()?;
        let [a, b, c, d, flags, x, y, z] = head;
        let len = u32::from_be_bytes([0, x, y, z]) as usize;
        let mut payload = vec![0; len];
        self.socket.read_exact(&mut payload).await.ok()?;
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Some(Frame::Data(stream, flags & 1 != 0, payload));
        }
        assert_eq!((a, b, c), (0x80, 3, 0));
        Some(match d {
            2 => {
                self.replies.read(&payload[4..]).unwrap();
                Frame::Reply(word(0))
            }
            3 => Frame::Reset(word(0), word(4)),
            6 => Frame::Ping(word(0)),
            7 => Frame::GoAway(word(4)),
            9 => Frame::Window(word(0), word(4)),
            kind => panic!("frame of kind {kind}"),
        })
    }

    /// Reads to the connection's end.
    pub(super) async fn heard(&mut self) -> Heard {
        let mut heard = Heard::default();
        while let Some(frame) = soon(self.frame()).await {
            match frame {
                Frame::Data(stream, fin, bytes) => {
                    heard.data.entry(stream).or_default().extend(bytes);
                    if fin {
                        heard.finished.push(stream);
                    }
                }
                Frame::Reset(stream, status) => heard.resets.push((stream, status)),
                Frame::GoAway(status) => heard.goodbye = Some(status),
                Frame::Reply(_) | Frame::Ping(_) | Frame::Window(..) => {}
            }
        }
        heard
    }
}
