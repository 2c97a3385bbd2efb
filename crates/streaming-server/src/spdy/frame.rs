//! Frames of SPDY/3.1: their heads, the control frames of a client, and what this
//! server says. Numbers are big-endian.
//!
//! ```text
//! data     |0| stream: 31 | flags: 8 | length: 24 | length bytes
//! control  |1| version: 15 | kind: 16 | flags: 8 | length: 24 | length bytes
//! ```

use super::headers::{HeaderError, HeaderReader, Headers};

/// Bytes of a head.
pub(crate) const HEAD: usize = 8;
/// Most bytes of a control frame. Data frames are taken piece by piece, of any
/// length.
pub(crate) const MAX_CONTROL: u32 = 16 << 10;
/// The last frame of a direction on its stream.
const FLAG_FIN: u8 = 1;
/// Only the sender of a SYN_STREAM has something to say.
const FLAG_UNIDIRECTIONAL: u8 = 2;
const VERSION: u16 = 3;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The setting with the window that new streams begin with.
const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a client's bytes are no SPDY/3.1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    #[error("control frame of version {0}; this server speaks SPDY/3.1 only")]
    Version(u16),
    #[error("control frame of {0} bytes; at most 16 KiB are taken")]
    TooLong(u32),
    #[error("control frame of kind {kind} has {len} bytes, which cannot be")]
    Length { kind: u16, len: usize },
    #[error("frame names stream 0, which is none")]
    StreamZero,
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Data { stream: u32, fin: bool, len: u32 },
    Control { kind: u16, flags: u8, len: u32 },
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let word = u32::from_be_bytes([a, b, c, d]);
        let len = u32::from_be_bytes([0, x, y, z]);
        if word & !STREAM_MASK == 0 {
            if word == 0 {
                return Err(FrameError::StreamZero);
            }
            let fin = flags & FLAG_FIN != 0;
            let stream = word;
            return Ok(Self::Data { stream, fin, len });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if len > MAX_CONTROL {
            return Err(FrameError::TooLong(len));
        }
        let kind = u16::from_be_bytes([c, d]);
        Ok(Self::Control { kind, flags, len })
    }
}

/// A control frame of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    /// A new stream.
    SynStream {
        stream: u32,
        /// The client has nothing to say on it.
        fin: bool,
        /// The server may say nothing on it.
        unidirectional: bool,
        headers: Headers,
    },
    /// The end of a stream, both ways.
    RstStream {
        stream: u32,
    },
    /// The window that streams begin with.
    InitialWindow(u32),
    Ping(u32),
    GoAway,
    /// More headers of a stream: nobody here asks for them.
    Headers {
        stream: u32,
        fin: bool,
    },
    /// Room for more data; stream 0 is the connection.
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// What has no meaning here, and is skipped.
    Other,
}

impl Control {
    /// Reads what follows a head. `headers` holds the client's compression.
    pub(crate) fn parse(
        kind: u16,
        flags: u8,
        payload: &[u8],
        headers: &mut HeaderReader,
    ) -> Result<Self, FrameError> {
        let len = payload.len();
        let bad = FrameError::Length { kind, len };
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            SYN_STREAM => {
                // Stream, stream it belongs to, priority and slot.
                let (fixed, block) = payload.split_first_chunk::<10>().ok_or(bad)?;
                let headers = headers.read(block)?;
                Self::SynStream {
                    stream: stream(fixed)?,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    headers,
                }
            }
            // This server opens no streams; but its compression must be kept.
            SYN_REPLY => {
                let (_, block) = payload.split_first_chunk::<4>().ok_or(bad)?;
                headers.read(block)?;
                Self::Other
            }
            HEADERS => {
                let (fixed, block) = payload.split_first_chunk::<4>().ok_or(bad)?;
                headers.read(block)?;
                let stream = stream(fixed)?;
                Self::Headers { stream, fin }
            }
            RST_STREAM => {
                let [fixed, _status] = words(payload).ok_or(bad)?;
                let stream = stream(&fixed.to_be_bytes())?;
                Self::RstStream { stream }
            }
            SETTINGS => Self::settings(payload).ok_or(bad)?,
            PING => {
                let [id] = words(payload).ok_or(bad)?;
                Self::Ping(id)
            }
            GOAWAY => {
                let [_last, _status] = words(payload).ok_or(bad)?;
                Self::GoAway
            }
            WINDOW_UPDATE => {
                let [stream, delta] = words(payload).ok_or(bad)?;
                Self::WindowUpdate {
                    stream: stream & STREAM_MASK,
                    delta: delta & STREAM_MASK,
                }
            }
            _ => Self::Other,
        })
    }

    fn settings(payload: &[u8]) -> Option<Self> {
        let (count, rest) = payload.split_first_chunk()?;
        let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
        let (entries, odd) = rest.as_chunks::<8>();
        if entries.len() != count || !odd.is_empty() {
            return None;
        }
        let mut windows = entries.iter().filter_map(|entry| {
            let [word, value] = words(entry)?;
            (word & 0x00ff_ffff == INITIAL_WINDOW_SIZE).then_some(value & STREAM_MASK)
        });
        Some(windows.next_back().map_or(Self::Other, Self::InitialWindow))
    }
}

fn stream(fixed: &[u8]) -> Result<u32, FrameError> {
    let word = fixed.first_chunk().map(|word| u32::from_be_bytes(*word));
    match word.unwrap_or_default() & STREAM_MASK {
        0 => Err(FrameError::StreamZero),
        stream => Ok(stream),
    }
}

fn words<const N: usize>(payload: &[u8]) -> Option<[u32; N]> {
    let (chunks, odd) = payload.as_chunks::<4>();
    let chunks: &[[u8; 4]; N] = chunks.try_into().ok()?;
    odd.is_empty().then(|| chunks.map(u32::from_be_bytes))
}

/// Why a stream is ended with RST_STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    Protocol = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
    FlowControl = 7,
}

/// How a connection ends, in GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goodbye {
    Ok = 0,
    ProtocolError = 1,
}

/// The head of a data frame. `len` is less than 2^24.
pub(crate) fn data_head(stream: u32, fin: bool, len: usize) -> [u8; HEAD] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [.., x, y, z] = len.to_be_bytes();
    [a, b, c, d, u8::from(fin), x, y, z]
}

/// The reply to a SYN_STREAM; `block` is an empty header block, compressed.
pub(crate) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, &[&stream.to_be_bytes(), block])
}

pub(crate) fn rst_stream(stream: u32, reason: Reset) -> Vec<u8> {
    numbers(RST_STREAM, stream, reason as u32)
}

pub(crate) fn window_update(stream: u32, delta: u32) -> Vec<u8> {
    numbers(WINDOW_UPDATE, stream, delta)
}

pub(crate) fn go_away(last_stream: u32, how: Goodbye) -> Vec<u8> {
    numbers(GOAWAY, last_stream, how as u32)
}

/// SETTINGS with no entries.
pub(crate) fn no_settings() -> Vec<u8> {
    control(SETTINGS, &[&0u32.to_be_bytes()])
}

pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(PING, &[&id.to_be_bytes()])
}

fn numbers(kind: u16, first: u32, second: u32) -> Vec<u8> {
    control(kind, &[&first.to_be_bytes(), &second.to_be_bytes()])
}

fn control(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let [.., x, y, z] = len.to_be_bytes();
    let mut frame = vec![0x80];
    frame.extend(&VERSION.to_be_bytes()[1..]);
    frame.extend(kind.to_be_bytes());
    frame.extend([0, x, y, z]);
    frame.extend(parts.concat());
    frame
}
