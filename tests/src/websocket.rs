//! A WebSocket client of the streaming server, as much of one as tests need:
//! messages go in one frame each, masked with zeros.

use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(300);

/// The key of each handshake.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A connection, upgraded.
#[derive(Debug)]
pub struct WebSocket {
    read: BufReader<TcpStream>,
    write: TcpStream,
}

/// What was said on each channel.
pub type Channels = BTreeMap<u8, Vec<u8>>;

/// Asks for an upgrade; the connection, if it was made, or the answer's first line.
pub fn connect(url: &str, protocol: &str) -> anyhow::Result<Result<WebSocket, String>> {
    let rest = url.strip_prefix("http://").context("an http URL")?;
    let (host, path) = rest.split_once('/').context("a path")?;
    let mut write = TcpStream::connect(host)?;
    write.set_read_timeout(Some(PATIENCE))?;
    write.set_write_timeout(Some(PATIENCE))?;
    write!(
        write,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )?;
    let mut read = BufReader::new(write.try_clone()?);
    let mut first = String::new();
    read.read_line(&mut first)?;
    if !first.starts_with("HTTP/1.1 101 ") {
        return Ok(Err(first));
    }
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(read.read_line(&mut line)? > 0, "the answer ended");
    }
    Ok(Ok(WebSocket { read, write }))
}

impl WebSocket {
    /// Says bytes on a channel.
    pub fn say(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        let len = u64::try_from(bytes.len() + 1)?;
        let mut frame = vec![0x82, 0x80 | 127];
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0, 0, 0, channel]);
        frame.extend(bytes);
        Ok(self.write.write_all(&frame)?)
    }

    /// Says that there is no more on a channel (version 5 of the protocol).
    pub fn end(&mut self, channel: u8) -> anyhow::Result<()> {
        self.say(255, &[channel])
    }

    /// Listens until `enough`, or to the server's close.
    pub fn hear(&mut self, enough: impl Fn(&Channels) -> bool) -> anyhow::Result<Channels> {
        let mut heard = Channels::new();
        while !enough(&heard) {
            let [kind, len] = self.bytes()?;
            let len = match len {
                126 => u16::from_be_bytes(self.bytes()?).into(),
                127 => u64::from_be_bytes(self.bytes()?),
                len => len.into(),
            };
            let mut message = vec![0; usize::try_from(len)?];
            self.read.read_exact(&mut message)?;
            match (kind, message.split_first()) {
                (0x82, Some((&channel, bytes))) => {
                    heard.entry(channel).or_default().extend(bytes);
                }
                (0x88, _) => break,
                other => anyhow::bail!("message {other:?}"),
            }
        }
        Ok(heard)
    }

    fn bytes<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
