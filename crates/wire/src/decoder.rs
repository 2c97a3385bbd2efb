//! Frames out of bytes that arrive in pieces, for epoll and async readers.

use crate::{HEADER, WireError, body_len};

/// Collects bytes and yields whole messages.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    bytes: Vec<u8>,
    /// Bytes of `bytes` already handed out as messages.
    taken: usize,
}

impl FrameDecoder {
    /// Adds bytes as they came from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message; `None` until more bytes are pushed.
    pub fn next_message<M: prost::Message + Default>(&mut self) -> Result<Option<M>, WireError> {
        let rest = &self.bytes[self.taken..];
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let len = body_len(*header)?;
        let Some(body) = body.get(..len) else {
            return Ok(None);
        };
        let message = M::decode(body)?;
        self.taken += HEADER + len;
        Ok(Some(message))
    }

    /// Bytes that belong to no whole message yet (or to what follows the last
    /// message, on a stream that turns into raw bytes).
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.split_off(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{encode, proto::Hello};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_come_out_however_the_bytes_were_cut(
            names in prop::collection::vec(".{0,40}", 0..8),
            sizes in prop::collection::vec(1usize..17, 1..64),
        ) {
            let sent: Vec<Hello> = names
                .into_iter()
                .map(|software| Hello { major: 3, minor: 1, software })
                .collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|m| encode(m).unwrap()).collect();
            let mut decoder = FrameDecoder::default();
            let mut got: Vec<Hello> = Vec::new();
            let (mut at, mut sizes) = (0, sizes.iter().cycle());
            while at < bytes.len() {
                let end = (at + sizes.next().unwrap()).min(bytes.len());
                decoder.push(&bytes[at..end]);
                at = end;
                while let Some(m) = decoder.next_message().unwrap() {
                    got.push(m);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(decoder.into_rest().is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut decoder = FrameDecoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message::<Hello>() {}
        }
    }
}
