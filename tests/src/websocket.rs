//! A WebSocket client of the streaming server, as much of one as tests need:
//! messages go in one frame each, masked with zeros.

use anyhow::{Context, ensure};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(300);

/// The key of each handshake.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What a connection goes over.
trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

/// A connection, upgraded.
pub struct WebSocket {
    wire: BufReader<Box<dyn Wire>>,
}

/// What was said on each channel.
pub type Channels = BTreeMap<u8, Vec<u8>>;

/// Asks for an upgrade; the connection, if it was made, or the answer's first line.
pub fn connect(url: &str, protocol: &str) -> anyhow::Result<Result<WebSocket, String>> {
    let rest = url.strip_prefix("http://").context("an http URL")?;
    let (host, path) = rest.split_once('/').context("a path")?;
    upgrade(Box::new(open(host)?), host, path, protocol)
}

/// [`connect`] with TLS, trusting one certificate.
pub fn connect_tls(
    url: &str,
    protocol: &str,
    trusted: &CertificateDer<'static>,
) -> anyhow::Result<Result<WebSocket, String>> {
    let rest = url.strip_prefix("https://").context("an https URL")?;
    let (host, path) = rest.split_once('/').context("a path")?;
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (name, _) = host.rsplit_once(':').context("a port")?;
    let name = ServerName::try_from(name.to_owned())?;
    let session = ClientConnection::new(Arc::new(config), name)?;
    let wire = StreamOwned::new(session, open(host)?);
    upgrade(Box::new(wire), host, path, protocol)
}

fn open(host: &str) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect(host)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn upgrade(
    mut wire: Box<dyn Wire>,
    host: &str,
    path: &str,
    protocol: &str,
) -> anyhow::Result<Result<WebSocket, String>> {
    write!(
        wire,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )?;
    wire.flush()?;
    let mut wire = BufReader::new(wire);
    let mut first = String::new();
    wire.read_line(&mut first)?;
    if !first.starts_with("HTTP/1.1 101 ") {
        return Ok(Err(first));
    }
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(wire.read_line(&mut line)? > 0, "the answer ended");
    }
    Ok(Ok(WebSocket { wire }))
}

impl WebSocket {
    /// Says bytes on a channel.
    pub fn say(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        let len = u64::try_from(bytes.len() + 1)?;
        let mut frame = vec![0x82, 0x80 | 127];
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0, 0, 0, channel]);
        frame.extend(bytes);
        let wire = self.wire.get_mut();
        wire.write_all(&frame)?;
        Ok(wire.flush()?)
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
            self.wire.read_exact(&mut message)?;
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
        self.wire.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
