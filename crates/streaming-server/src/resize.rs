//! Sizes of a terminal, as clients write them to the resize stream: JSON objects
//! one after the other, `{"Width":80,"Height":25}`.

use crate::backend::TerminalSize;
use crate::input::Input;
use serde::Deserialize;
use std::future::pending;
use std::time::Duration;
use tokio::time::timeout;

/// Most bytes of one object; more is nonsense.
const MAX_OBJECT: usize = 1024;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    #[serde(alias = "width")]
    width: u16,
    #[serde(alias = "height")]
    height: u16,
}

/// A client's resize stream, if it has one.
pub(crate) struct ResizeStream {
    input: Option<Input>,
    resizes: Resizes,
}

impl ResizeStream {
    pub(crate) fn new(input: Option<Input>) -> Self {
        Self {
            input,
            resizes: Resizes::default(),
        }
    }

    /// The size that the client tells first, where it does so in time.
    pub(crate) async fn first(&mut self, limit: Duration) -> Option<TerminalSize> {
        let first = async {
            while self.input.is_some() {
                if let Some(size) = self.next().await {
                    return Some(size);
                }
            }
            None
        };
        timeout(limit, first).await.unwrap_or_default()
    }

    /// The newest size, once the client has said something; never after its end.
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<TerminalSize> {
        let Some(input) = &mut self.input else {
            return pending().await;
        };
        match input.next().await {
            Ok(Some(bytes)) => self.resizes.read(&bytes).pop(),
            Ok(None) | Err(_) => {
                self.input = None;
                None
            }
        }
    }
}

/// Finds sizes in bytes that come in pieces.
#[derive(Debug, Default)]
struct Resizes {
    rest: Vec<u8>,
    /// What came was no size: the stream has no meaning any more.
    broken: bool,
}

impl Resizes {
    /// The sizes that end in these bytes. Those without any columns or lines are no
    /// sizes.
    fn read(&mut self, bytes: &[u8]) -> Vec<TerminalSize> {
        let mut found = Vec::new();
        if self.broken {
            return found;
        }
        self.rest.extend_from_slice(bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&self.rest).into_iter::<Size>();
        for size in &mut sizes {
            match size {
                Ok(Size { width, height }) => found.push(TerminalSize {
                    columns: width,
                    rows: height,
                }),
                Err(error) => {
                    self.broken = !error.is_eof();
                    break;
                }
            }
        }
        let used = sizes.byte_offset();
        self.rest.drain(..used);
        if self.rest.len() > MAX_OBJECT {
            self.broken = true;
        }
        if self.broken {
            tracing::debug!("a client's resize stream is no JSON; the rest of it is skipped");
            self.rest = Vec::new();
        }
        found.retain(|size| size.columns > 0 && size.rows > 0);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::input;
    use crate::limits::Limits;
    use crate::room::Room;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn size(columns: u16, rows: u16) -> TerminalSize {
        TerminalSize { columns, rows }
    }

    #[test]
    fn sizes_come_in_any_pieces() {
        let text = b"{\"Width\":80,\"Height\":25}\n{\"Width\":132,\"Height\":50}\n";
        for cut in 0..text.len() {
            let mut resizes = Resizes::default();
            let mut found = resizes.read(&text[..cut]);
            found.extend(resizes.read(&text[cut..]));
            assert_eq!(found, [size(80, 25), size(132, 50)], "{cut}");
        }
    }

    #[test]
    fn empty_and_impossible_sizes_are_skipped() {
        let mut resizes = Resizes::default();
        assert!(resizes.read(b"{\"Width\":0,\"Height\":25}").is_empty());
        assert_eq!(resizes.read(b"{\"Width\":1,\"Height\":1}"), [size(1, 1)]);
        assert!(resizes.read(b"{\"Width\":70000,\"Height\":1}").is_empty());
        assert!(resizes.read(b"{\"Width\":2,\"Height\":2}").is_empty());
    }

    #[test]
    fn object_without_end_is_not_kept() {
        let mut resizes = Resizes::default();
        for _ in 0..10 {
            resizes.read(&[b' '; 1000]);
            resizes.read(&[b'['; 1000]);
        }
        assert!(resizes.rest.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn first_size_is_waited_for_and_no_longer_than_it_can_come() {
        let limit = Duration::from_secs(1);
        let begun = tokio::time::Instant::now();
        assert_eq!(ResizeStream::new(None).first(limit).await, None);
        let (sender, told) = input(&Room::of_command(None, &Limits::default()), None);
        let mut stream = ResizeStream::new(Some(told));
        for piece in [
            "{\"Width\":80,",
            "\"Height\":25}{\"Width\":81,",
            "\"Height\":25}",
        ] {
            sender.send(Bytes::from_static(piece.as_bytes())).await;
        }
        assert_eq!(stream.first(limit).await, Some(size(80, 25)));
        assert_eq!(stream.next().await, Some(size(81, 25)));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(stream.first(limit).await, None);
        assert_eq!(begun.elapsed(), limit);
        drop(sender);
        assert_eq!(stream.first(limit).await, None);
        assert_eq!(begun.elapsed(), limit);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(pieces: Vec<Vec<u8>>) {
            let mut resizes = Resizes::default();
            for piece in pieces {
                resizes.read(&piece);
                prop_assert!(resizes.rest.len() <= MAX_OBJECT);
            }
        }
    }
}
