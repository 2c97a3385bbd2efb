//! Messages of the channel protocols: a channel's number, then its bytes; or the
//! number as a digit, then the bytes in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

/// In version 5: the channel named next is at its end.
const CLOSE: u8 = 255;

/// How messages carry channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codec {
    /// Text with base64 instead of bytes.
    pub(crate) base64: bool,
    /// The client can end a channel.
    pub(crate) close: bool,
}

/// What a client's message says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Bytes on a channel.
    Data(u8, Bytes),
    /// The end of a channel.
    Close(u8),
    /// Nothing.
    Nothing,
}

/// Why a message is none of the protocol.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ChannelError {
    #[error("a message for channel {0}, of which there is none")]
    NoChannel(u8),
    #[error("a close message that does not name one channel")]
    Close,
    #[error("a message whose content is not base64")]
    Base64,
}

impl Codec {
    /// Reads a message of a client that has that many channels.
    pub(crate) fn read(self, mut message: Bytes, channels: u8) -> Result<Said, ChannelError> {
        if message.is_empty() {
            return Ok(Said::Nothing);
        }
        let mark = message.split_to(1)[0];
        if self.close && mark == CLOSE {
            return match *message {
                [channel] if channel < channels => Ok(Said::Close(channel)),
                _ => Err(ChannelError::Close),
            };
        }
        let channel = if self.base64 {
            mark.wrapping_sub(b'0')
        } else {
            mark
        };
        if channel >= channels {
            return Err(ChannelError::NoChannel(channel));
        }
        if self.base64 {
            let bytes = STANDARD.decode(&message);
            message = bytes.map_err(|_| ChannelError::Base64)?.into();
        }
        Ok(Said::Data(channel, message))
    }

    /// The message that carries bytes on a channel.
    pub(crate) fn write(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::from(char::from(b'0'.wrapping_add(channel)));
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::binary(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BINARY: Codec = Codec {
        base64: false,
        close: true,
    };
    const BASE64: Codec = Codec {
        base64: true,
        close: false,
    };

    fn read(codec: Codec, message: &'static [u8]) -> Result<Said, ChannelError> {
        codec.read(Bytes::from_static(message), 5)
    }

    #[test]
    fn bytes_go_on_channels_both_ways() {
        let data = |channel, bytes| Ok(Said::Data(channel, Bytes::from_static(bytes)));
        assert_eq!(read(BINARY, b"\x00foo"), data(0, b"foo"));
        assert_eq!(read(BASE64, b"0Zm9v"), data(0, b"foo"));
        assert_eq!(read(BINARY, b"\x04"), data(4, b""));
        assert_eq!(read(BINARY, b""), Ok(Said::Nothing));
        assert_eq!(BINARY.write(1, b"foo"), Message::binary(&b"\x01foo"[..]));
        assert_eq!(BASE64.write(1, b"foo"), Message::text("1Zm9v"));
        assert_eq!(BASE64.write(1, b""), Message::text("1"));
    }

    #[test]
    fn close_names_one_channel_and_is_of_version_5() {
        assert_eq!(read(BINARY, b"\xff\x00"), Ok(Said::Close(0)));
        for message in [&b"\xff"[..], b"\xff\x00\x00", b"\xff\x05"] {
            assert_eq!(read(BINARY, message), Err(ChannelError::Close));
        }
        let v4 = Codec {
            close: false,
            ..BINARY
        };
        let none = Err(ChannelError::NoChannel(255));
        assert_eq!(read(v4, b"\xff\x00"), none);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(read(BINARY, b"\x05"), Err(ChannelError::NoChannel(5)));
        assert_eq!(read(BASE64, b"\x00"), Err(ChannelError::NoChannel(208)));
        assert_eq!(read(BASE64, b"0Zm9"), Err(ChannelError::Base64));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(channel in 0u8..5, bytes: Vec<u8>, base64: bool) {
            let codec = Codec { base64, close: !base64 };
            let message = codec.write(channel, &bytes).into_data();
            prop_assert_eq!(codec.read(message, 5), Ok(Said::Data(channel, bytes.into())));
        }

        #[test]
        fn any_message_is_read_or_refused(message: Vec<u8>, base64: bool, close: bool) {
            let _ = Codec { base64, close }.read(message.into(), 5);
        }
    }
}
