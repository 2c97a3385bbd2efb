//! Mutated conversations by each transport. A short run is an ordinary test; set
//! `STREAMING_FUZZ_SECONDS` for a long one of each:
//! `STREAMING_FUZZ_SECONDS=600 cargo test --workspace --lib fuzz -- --nocapture`.

use super::Fake;
use crate::backend::{AttachRequest, ExecRequest, PortForwardRequest, Streams};
use crate::ending::Ending;
use crate::limits::Limits;
use crate::negotiate::{CommandProtocol, ForwardProtocol, Transport};
use crate::peer::Peer;
use crate::place::Place;
use crate::session::{Agreed, Protocol};
use crate::spdy::{HeaderReader, HeaderWriter, Headers, scan};
use crate::spill::SpillSpace;
use crate::urls::Request;
use crate::websocket::Codec;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::timeout;

/// Rounds of a short run.
const ROUNDS: u64 = 300;
/// A conversation that takes longer hangs. Only one that hangs waits for it.
const HANGS: Duration = Duration::from_secs(60);

/// Numbers by chance, the same from the same seed (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap()
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() % limit.max(1)
    }

    /// Changes bytes in some places: flips, cuts, repeats, numbers at their bounds.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    let piece = bytes[at..].to_vec();
                    bytes.extend(piece);
                }
                2 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    bytes.drain(at..end);
                }
                3 => {
                    let number = [0, 1, 0x7f, 0x80, 0xff][self.below(5)];
                    let end = (at + 4).min(bytes.len());
                    bytes[at..end].fill(number);
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => bytes.push(self.next().to_le_bytes()[0]),
            }
        }
    }
}

fn control(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [.., x, y, z] = payload.len().to_be_bytes();
    [&[0x80, 3, 0, kind, flags, x, y, z], payload].concat()
}

fn data(stream: u8, fin: u8, bytes: &[u8]) -> Vec<u8> {
    let [.., x, y, z] = bytes.len().to_be_bytes();
    [&[0, 0, 0, stream, fin, x, y, z], bytes].concat()
}

/// A conversation of each kind that is as it should be, some header blocks changed
/// before they are compressed.
fn spdy(kinds: &[&str], chance: &mut Chance) -> Vec<u8> {
    let mut headers = HeaderWriter::new();
    let mut said = control(4, 0, &[0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 3, 0xe8]);
    for (kind, stream) in kinds.iter().zip((1u8..).step_by(2)) {
        let mut block = Headers::block(&[("streamtype", kind), ("port", "7")]);
        if chance.below(8) == 0 {
            chance.mutate(&mut block);
        }
        let block = headers.write(&block);
        let fixed = [0, 0, 0, stream, 0, 0, 0, 0, 0, 0];
        said.extend(control(1, 0, &[&fixed[..], &block].concat()));
    }
    for part in [
        control(6, 0, &[0, 0, 0, 1]),
        data(3, 0, b"{\"Width\":80,\"Height\":25} some input"),
        control(9, 0, &[0, 0, 0, 3, 0, 1, 0, 0]),
        control(9, 0, &[0, 0, 0, 0, 0, 1, 0, 0]),
        data(7, 0, b"{\"Width\":80,\"Height\":25}"),
        control(8, 0, &[&[0, 0, 0, 3][..], &headers.empty()].concat()),
        data(3, 1, b""),
        control(3, 0, &[0, 0, 0, 5, 0, 0, 0, 5]),
    ] {
        said.extend(part);
    }
    if chance.below(2) == 0 {
        said.extend(control(7, 0, &[0; 8]));
    }
    said
}

/// A client's WebSocket frame, masked with zeros.
fn frame(opcode: u8, message: &[u8]) -> Vec<u8> {
    let len = u8::try_from(message.len()).unwrap();
    assert!(len < 126);
    [&[0x80 | opcode, 0x80 | len, 0, 0, 0, 0], message].concat()
}

fn websocket() -> Vec<u8> {
    [
        frame(2, b"\x00some input"),
        frame(1, b"0c29tZSBpbnB1dA=="),
        frame(2, b"\x04{\"Width\":80,\"Height\":25}"),
        frame(9, b"ping"),
        // In two parts.
        vec![0x02, 0x82, 1, 2, 3, 4, 1, b'a' ^ 2],
        frame(0, b"b"),
        frame(2, b"\xff\x00"),
        frame(8, &[3, 0xe8]),
    ]
    .concat()
}

/// Which parser is spoken to.
#[derive(Debug, Clone, Copy)]
enum Parser {
    Spdy,
    /// Also where SPDY goes through it.
    WebSocket,
}

fn wanted(parser: Parser, chance: &mut Chance) -> (Agreed, Vec<u8>) {
    let streams = Streams {
        stdin: true,
        stdout: true,
        stderr: false,
        terminal: true,
    };
    let exec = |command: &str| {
        Request::Exec(ExecRequest {
            container: "c".to_owned(),
            command: vec![command.to_owned()],
            streams,
        })
    };
    let codec = Codec {
        base64: chance.below(2) == 0,
        close: chance.below(2) == 0,
    };
    let v = |version| {
        Protocol::Command(CommandProtocol {
            version,
            base64: codec.base64,
        })
    };
    let socket = || Transport::WebSocket {
        accept: String::new(),
    };
    let forward = || {
        Request::PortForward(PortForwardRequest {
            sandbox: "s".to_owned(),
            ports: vec![7, 80],
        })
    };
    let attach = Request::Attach(AttachRequest {
        container: "c".to_owned(),
        streams,
    });
    let types = ["error", "stdin", "stdout", "resize"];
    let pairs = ["error", "data", "error", "data"];
    let (request, transport, protocol, said) = match (parser, chance.below(3)) {
        (Parser::Spdy, 0) => (exec("cat"), Transport::Spdy, v(4), spdy(&types, chance)),
        (Parser::Spdy, 1) => (attach, Transport::Spdy, v(4), spdy(&types, chance)),
        (Parser::Spdy, _) => {
            let protocol = Protocol::Forward(ForwardProtocol::Pairs);
            (forward(), Transport::Spdy, protocol, spdy(&pairs, chance))
        }
        (Parser::WebSocket, 0) => {
            let protocol = Protocol::Forward(ForwardProtocol::Pairs);
            let inner = spdy(&pairs, chance);
            let said = inner.chunks(100).flat_map(|piece| frame(2, piece));
            (forward(), socket(), protocol, said.collect())
        }
        (Parser::WebSocket, 1) => {
            let protocol = Protocol::Forward(ForwardProtocol::Channels(codec));
            (forward(), socket(), protocol, websocket())
        }
        (Parser::WebSocket, _) => (exec("cat"), socket(), v(5), websocket()),
    };
    let agreed = Agreed {
        request,
        transport,
        protocol,
    };
    (agreed, said)
}

/// One conversation, to its end.
async fn round(place: &Place, parser: Parser, seed: u64) {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (agreed, mut said) = wanted(parser, &mut chance);
    chance.mutate(&mut said);
    let _ = scan(&said);
    let _ = HeaderReader::new().read(&said);
    let (server, mut client) = duplex(4096);
    let (peer, theirs) = Peer::pair();
    let talk = async {
        let cut = chance.below(said.len());
        let (mut read, mut write) = tokio::io::split(&mut client);
        let speak = async {
            // The server may have closed already.
            let _ = write.write_all(&said[..cut]).await;
            tokio::task::yield_now().await;
            let _ = write.write_all(&said[cut..]).await;
            let _ = write.shutdown().await;
            drop(theirs);
        };
        let mut heard = Vec::new();
        let _ = tokio::join!(speak, read.read_to_end(&mut heard));
    };
    let both = async { tokio::join!(place.serve(agreed, server, &peer), talk) };
    assert!(timeout(HANGS, both).await.is_ok(), "hangs with seed {seed}");
}

#[tokio::test]
async fn fuzz_spdy() {
    fuzz(Parser::Spdy).await;
}

#[tokio::test]
async fn fuzz_websocket() {
    fuzz(Parser::WebSocket).await;
}

async fn fuzz(parser: Parser) {
    let backend = Fake::default();
    let limits = Limits {
        stream_creation: Duration::from_millis(20),
        linger: Duration::from_millis(20),
        ..Limits::default()
    };
    let (_end, ending) = Ending::new();
    let spill = SpillSpace::new(std::env::temp_dir(), limits.spilled);
    let place = Place {
        backend: Arc::new(backend.clone()),
        limits,
        spill: Some(Arc::new(spill)),
        ending,
    };
    let seconds = std::env::var("STREAMING_FUZZ_SECONDS");
    let seconds = seconds.ok().and_then(|text| text.parse().ok());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    // A long run goes elsewhere each time.
    let first = end.map_or(0, |_| u64::from(std::process::id()) << 32);
    let mut seed = first;
    while end.map_or(seed < ROUNDS, |end| Instant::now() < end) {
        round(&place, parser, seed).await;
        seed += 1;
    }
    println!(
        "{parser:?}: {} conversations from seed {first}",
        seed - first
    );
    backend.lives(0).await;
}
