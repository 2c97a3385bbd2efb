//! Sizes of a terminal, as clients write them to the resize stream: JSON objects
//! one after the other, `{"Width":80,"Height":25}`.

use serde::Deserialize;

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

/// Finds sizes in bytes that come in pieces.
#[derive(Debug, Default)]
pub(crate) struct Resizes {
    rest: Vec<u8>,
    /// What came was no size: the stream has no meaning any more.
    broken: bool,
}

impl Resizes {
    /// The sizes that end in these bytes, columns first. Those without any
    /// columns or lines are no sizes.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Vec<(u16, u16)> {
        let mut found = Vec::new();
        if self.broken {
            return found;
        }
        self.rest.extend_from_slice(bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&self.rest).into_iter::<Size>();
        for size in &mut sizes {
            match size {
                Ok(Size { width, height }) => found.push((width, height)),
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
        found.retain(|&(columns, rows)| columns > 0 && rows > 0);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let text = b"{\"Width\":80,\"Height\":25}\n{\"Width\":132,\"Height\":50}\n";
        for cut in 0..text.len() {
            let mut resizes = Resizes::default();
            let mut found = resizes.read(&text[..cut]);
            found.extend(resizes.read(&text[cut..]));
            assert_eq!(found, [(80, 25), (132, 50)], "{cut}");
        }
    }

    #[test]
    fn empty_and_impossible_sizes_are_skipped() {
        let mut resizes = Resizes::default();
        assert!(resizes.read(b"{\"Width\":0,\"Height\":25}").is_empty());
        assert_eq!(resizes.read(b"{\"Width\":1,\"Height\":1}"), [(1, 1)]);
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
