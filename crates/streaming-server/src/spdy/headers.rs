//! Header blocks: names and values, compressed with one context a direction for
//! the whole connection (SPDY protocol draft 3.1, 2.6.10).

use super::dictionary::DICTIONARY;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Most bytes of one block, decompressed. Ours need a hundred.
const MAX_BLOCK: usize = 16 << 10;
/// Most pairs of one block.
const MAX_PAIRS: usize = 64;

/// Why a header block cannot be read. The connection is lost with it: what
/// follows was compressed against it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HeaderError {
    #[error("header block is not compressed as SPDY/3.1 says")]
    Compression,
    #[error("header block has more than 16 KiB")]
    TooLong,
    #[error("header block has more than 64 names")]
    TooMany,
    #[error("header block ends within a name or value")]
    Truncated,
    #[error("header block has bytes after its last value")]
    Trailing,
    #[error("header block has a name or value that is no UTF-8")]
    Text,
}

/// Names and values of one block. Names are lower-case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of that name, which is lower-case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(known, _)| known == name);
        pair.map(|(_, value)| value.as_str())
    }

    fn parse(block: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > MAX_PAIRS {
            return Err(HeaderError::TooMany);
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut rest)?.to_ascii_lowercase();
            pairs.push((name, text(&mut rest)?.to_owned()));
        }
        if !rest.is_empty() {
            return Err(HeaderError::Trailing);
        }
        Ok(Self(pairs))
    }

    #[cfg(test)]
    pub(crate) fn block(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut block = u32::try_from(pairs.len()).unwrap().to_be_bytes().to_vec();
        for text in pairs.iter().flat_map(|&(name, value)| [name, value]) {
            block.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            block.extend(text.as_bytes());
        }
        block
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, HeaderError> {
    let (bytes, after) = rest.split_first_chunk().ok_or(HeaderError::Truncated)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| HeaderError::TooLong)
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
    let len = number(rest)?;
    let (bytes, after) = rest.split_at_checked(len).ok_or(HeaderError::Truncated)?;
    *rest = after;
    std::str::from_utf8(bytes).map_err(|_| HeaderError::Text)
}

/// Decompresses the blocks of one direction, in their order.
#[derive(Debug)]
pub(crate) struct HeaderReader {
    inflate: Decompress,
}

impl HeaderReader {
    /// For a new connection.
    pub(crate) fn new() -> Self {
        Self {
            inflate: Decompress::new(true),
        }
    }

    /// The headers of the next block.
    pub(crate) fn read(&mut self, compressed: &[u8]) -> Result<Headers, HeaderError> {
        let mut block = Vec::with_capacity(MAX_BLOCK + 1);
        let mut rest = compressed;
        loop {
            let before = (self.inflate.total_in(), self.inflate.total_out());
            let result = self
                .inflate
                .decompress_vec(rest, &mut block, FlushDecompress::Sync);
            let read = self.inflate.total_in() - before.0;
            rest = usize::try_from(read)
                .ok()
                .and_then(|read| rest.get(read..))
                .ok_or(HeaderError::Compression)?;
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.inflate.set_dictionary(&DICTIONARY);
                    set.map_err(|_| HeaderError::Compression)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if block.len() > MAX_BLOCK {
                return Err(HeaderError::TooLong);
            }
            if rest.is_empty() {
                return Headers::parse(&block);
            }
            // Bytes are left, room is left, and nothing moves.
            if (self.inflate.total_in(), self.inflate.total_out()) == before {
                return Err(HeaderError::Compression);
            }
        }
    }
}

/// Compresses the blocks of one direction, in their order.
#[derive(Debug)]
pub(crate) struct HeaderWriter {
    deflate: Compress,
}

impl HeaderWriter {
    /// For a new connection.
    pub(crate) fn new() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        // Refused for raw deflate and after the first byte only.
        let _ = deflate.set_dictionary(&DICTIONARY);
        Self { deflate }
    }

    /// A block without headers, the only one this server has to say.
    pub(crate) fn empty(&mut self) -> Vec<u8> {
        self.write(&[0; 4])
    }

    pub(crate) fn write(&mut self, block: &[u8]) -> Vec<u8> {
        // zlib's bound, and room for its header and the flush.
        let mut out = Vec::with_capacity(block.len() + block.len() / 8 + 64);
        let flush = FlushCompress::Sync;
        // Into memory that has room, this cannot fail.
        let _ = self.deflate.compress_vec(block, &mut out, flush);
        out
    }

    #[cfg(test)]
    pub(crate) fn pairs(&mut self, pairs: &[(&str, &str)]) -> Vec<u8> {
        self.write(&Headers::block(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_share_one_context() {
        let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
        for n in 0..50 {
            let id = n.to_string();
            let pairs = [("streamtype", "data"), ("port", "80"), ("requestid", &id)];
            let compressed = writer.pairs(&pairs);
            let headers = reader.read(&compressed).unwrap();
            assert_eq!(headers.get("requestid"), Some(&*id));
            assert_eq!(headers.get("port"), Some("80"));
            assert_eq!(headers.get("none"), None);
        }
        let empty = writer.empty();
        assert_eq!(reader.read(&empty).unwrap(), Headers::default());
    }

    #[test]
    fn names_are_made_lower_case() {
        let headers = Headers::parse(&Headers::block(&[("StreamType", "A")])).unwrap();
        assert_eq!(headers.get("streamtype"), Some("A"));
    }

    #[test]
    fn block_that_grows_beyond_all_bounds_is_refused() {
        let mut writer = HeaderWriter::new();
        let bomb = writer.write(&vec![0; 1 << 20]);
        assert!(bomb.len() < 16 << 10);
        let error = HeaderReader::new().read(&bomb).unwrap_err();
        assert_eq!(error, HeaderError::TooLong);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let block = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect();
        let cases: [(Vec<u8>, HeaderError); 5] = [
            (block(&[u32::MAX]), HeaderError::TooMany),
            (block(&[1]), HeaderError::Truncated),
            (block(&[1, u32::MAX]), HeaderError::Truncated),
            (block(&[0, 0]), HeaderError::Trailing),
            (block(&[1, 1, 0xff00_0000]), HeaderError::Text),
        ];
        for (block, wanted) in cases {
            assert_eq!(Headers::parse(&block).unwrap_err(), wanted, "{block:?}");
        }
    }

    #[test]
    fn end_of_the_compressed_stream_is_refused() {
        let mut deflate = Compress::new(Compression::fast(), true);
        let mut out = Vec::with_capacity(64);
        deflate
            .compress_vec(&[0; 4], &mut out, FlushCompress::Finish)
            .unwrap();
        let error = HeaderReader::new().read(&out).unwrap_err();
        assert_eq!(error, HeaderError::Compression);
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_headers_or_an_error(bytes: Vec<u8>) {
            let _ = Headers::parse(&bytes);
            let mut reader = HeaderReader::new();
            let _ = reader.read(&bytes);
            let _ = reader.read(&bytes);
        }

        #[test]
        fn any_block_as_compressed_data_ends_in_headers_or_an_error(bytes: Vec<u8>) {
            let compressed = HeaderWriter::new().write(&bytes);
            let parsed = Headers::parse(&bytes);
            let mut reader = HeaderReader::new();
            prop_assert_eq!(reader.read(&compressed), parsed);
        }
    }
}
