//! The private wires' framing: length-prefixed protobuf messages over a stream,
//! file descriptors beside them where the stream is a unix socket, and the
//! version handshake that opens every connection.
//!
//! A frame is a little-endian `u32` byte count and one message of that many
//! bytes. A peer may be hostile (the guest is): a count past [`MAX_FRAME`] ends
//! the connection before anything is allocated for it.

mod decoder;
mod fd_stream;
mod handshake;

/// Messages of `proto/spherule/wire/v1/wire.proto`.
#[expect(missing_docs, reason = "generated; the proto file documents them")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/spherule.wire.v1.rs"));
}

pub use decoder::FrameDecoder;
pub use fd_stream::FdStream;
pub use handshake::{MAJOR, MINOR, check_hello, handshake, hello};

use std::io::{self, Read, Write};

/// Largest message in bytes that either side accepts.
pub const MAX_FRAME: usize = 1 << 20;

/// Bytes of the length in front of each message.
const HEADER: usize = 4;

/// Why a wire broke. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream itself failed.
    #[error("reading or writing the connection failed")]
    Io(#[from] io::Error),
    /// The peer closed the connection in the middle of a frame or handshake.
    #[error("the peer closed the connection in the middle of a message")]
    Truncated,
    /// The peer announced a frame larger than [`MAX_FRAME`].
    #[error("the peer sent a frame of {0} bytes; at most {MAX_FRAME} are allowed")]
    TooLarge(usize),
    /// The bytes are no message of the expected type.
    #[error("the peer sent a malformed message")]
    Malformed(#[from] prost::DecodeError),
    /// The peer speaks another major version.
    #[error(
        "the peer ({software}) speaks protocol {theirs}, this side {MAJOR}; install matching versions"
    )]
    Version {
        /// The peer's major version.
        theirs: u32,
        /// The peer's name for itself.
        software: String,
    },
}

/// The bytes of one frame holding `message`.
pub fn encode<M: prost::Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let len = message.encoded_len();
    if len > MAX_FRAME {
        return Err(WireError::TooLarge(len));
    }
    let mut frame = Vec::with_capacity(HEADER + len);
    let prefix = u32::try_from(len).map_err(|_| WireError::TooLarge(len))?;
    frame.extend_from_slice(&prefix.to_le_bytes());
    message.encode_raw(&mut frame);
    Ok(frame)
}

/// Checks a frame's header; returns the length of its message in bytes.
fn body_len(header: [u8; HEADER]) -> Result<usize, WireError> {
    let len = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if len > MAX_FRAME {
        Err(WireError::TooLarge(len))
    } else {
        Ok(len)
    }
}

/// Writes one frame to a blocking stream.
pub fn write_frame<M: prost::Message>(to: &mut impl Write, message: &M) -> Result<(), WireError> {
    to.write_all(&encode(message)?)?;
    Ok(())
}

/// Reads one frame from a blocking stream; `None` where the peer closed it
/// between frames.
pub fn read_frame<M: prost::Message + Default>(
    from: &mut impl Read,
) -> Result<Option<M>, WireError> {
    let mut header = [0; HEADER];
    match read_full(from, &mut header)? {
        0 => return Ok(None),
        HEADER => {}
        _ => return Err(WireError::Truncated),
    }
    let mut body = vec![0; body_len(header)?];
    if read_full(from, &mut body)? != body.len() {
        return Err(WireError::Truncated);
    }
    Ok(Some(M::decode(body.as_slice())?))
}

/// Reads until `buf` is full or the stream ends; returns the bytes read.
fn read_full(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match from.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Hello;

    fn sample() -> Hello {
        Hello {
            major: 1,
            minor: 2,
            software: "test".into(),
        }
    }

    #[test]
    fn frame_survives_a_round_trip() {
        let bytes = encode(&sample()).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read_frame::<Hello>(&mut from).unwrap(), Some(sample()));
        assert_eq!(read_frame::<Hello>(&mut from).unwrap(), None);
    }

    #[test]
    fn half_a_frame_is_truncated() {
        let bytes = encode(&sample()).unwrap();
        for cut in 1..bytes.len() {
            let got = read_frame::<Hello>(&mut &bytes[..cut]);
            assert!(
                matches!(got, Err(WireError::Truncated)),
                "cut at {cut}: {got:?}"
            );
        }
    }

    #[test]
    fn giant_length_is_refused_unread() {
        let got = read_frame::<Hello>(&mut [0xff, 0xff, 0xff, 0xff].as_slice());
        assert!(matches!(got, Err(WireError::TooLarge(_))));
    }
}
