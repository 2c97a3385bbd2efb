//! Compressed streams: what they are is told by their first bytes, as
//! containerd does, since media types are often wrong about it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::{Digest, ImageError};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const INPUT_BUFFER_LEN: usize = 256 << 10;
/// Bytes that go from one thread to the other at once, and how many such
/// parts may wait.
const PART_LEN: usize = 256 << 10;
const PARTS_WAITING: usize = 8;

/// A stream that decompresses to more than is allowed.
#[derive(Debug, thiserror::Error)]
#[error("the decompressed data is over the limit of {limit} bytes")]
pub(crate) struct StreamTooLong {
    limit: u64,
}

/// Decompresses gzip and zstd, passes anything else through.
pub(crate) fn decompress<'r, R: BufRead + Send + 'r>(
    mut input: R,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let start = input.fill_buf()?;
    if start.starts_with(GZIP_MAGIC) {
        Ok(Box::new(MultiGzDecoder::new(input)))
    } else if start.starts_with(ZSTD_MAGIC) {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(input)?))
    } else {
        Ok(Box::new(input))
    }
}

/// A layer's archive as it comes out of decompression, which runs, with the
/// hashing, in a thread of its own.
pub(crate) struct LayerStream {
    parts: Receiver<io::Result<Vec<u8>>>,
    part: Vec<u8>,
    read: usize,
    worker: Option<JoinHandle<(Digest, u64)>>,
    ended: bool,
}

impl LayerStream {
    /// Starts on a layer file; `limit` bounds the bytes that come out.
    pub(crate) fn start(file: File, limit: u64) -> Self {
        let (sender, parts) = sync_channel(PARTS_WAITING);
        let worker = std::thread::spawn(move || produce(file, limit, &sender));
        Self {
            parts,
            part: Vec::new(),
            read: 0,
            worker: Some(worker),
            ended: false,
        }
    }

    /// The digest and length of all that came out, after it was read to its end.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64), ImageError> {
        drop(std::mem::take(&mut self.part));
        self.worker
            .take()
            .ok_or(ImageError::Thread)?
            .join()
            .map_err(|_| ImageError::Thread)
    }
}

fn produce(file: File, limit: u64, sender: &SyncSender<io::Result<Vec<u8>>>) -> (Digest, u64) {
    let mut hasher = Sha256::new();
    let mut total: u64 = 0;
    let run = || -> io::Result<()> {
        let mut stream = decompress(BufReader::with_capacity(INPUT_BUFFER_LEN, file))?;
        loop {
            let mut part = Vec::with_capacity(PART_LEN);
            stream
                .by_ref()
                .take(PART_LEN as u64)
                .read_to_end(&mut part)?;
            if part.is_empty() {
                return Ok(());
            }
            total += part.len() as u64;
            if total > limit {
                return Err(io::Error::other(StreamTooLong { limit }));
            }
            hasher.update(&part);
            if sender.send(Ok(part)).is_err() {
                // The reader gave up; it has its own reason.
                return Ok(());
            }
        }
    };
    if let Err(error) = run() {
        // Nobody listens where the reader gave up already.
        let _ = sender.send(Err(error));
    }
    (Digest::from_hasher(hasher), total)
}

impl BufRead for LayerStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.read == self.part.len() && !self.ended {
            self.read = 0;
            match self.parts.recv() {
                Ok(Ok(part)) => self.part = part,
                Ok(Err(error)) => {
                    self.part.clear();
                    return Err(error);
                }
                Err(_) => {
                    self.part.clear();
                    self.ended = true;
                }
            }
        }
        Ok(&self.part[self.read..])
    }

    fn consume(&mut self, len: usize) {
        self.read = (self.read + len).min(self.part.len());
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.fill_buf()?;
        let len = part.len().min(buffer.len());
        buffer[..len].copy_from_slice(&part[..len]);
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn layer(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn content() -> Vec<u8> {
        (0..1_000_000_u32)
            .flat_map(|n| (n / 3).to_le_bytes())
            .collect()
    }

    fn read(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut stream = LayerStream::start(layer(bytes), limit);
        let mut out = Vec::new();
        stream.read_to_end(&mut out)?;
        let (digest, len) = stream.finish().unwrap();
        assert_eq!((digest, len), (Digest::of(&out), out.len() as u64));
        Ok(out)
    }

    #[test]
    fn all_three_encodings_come_out_the_same() {
        let content = content();
        let two_members = [gzip(&content[..1000]), gzip(&content[1000..])].concat();
        let zstd = zstd::encode_all(&content[..], 3).unwrap();
        for encoded in [&content, &gzip(&content), &two_members, &zstd] {
            assert!(read(encoded, u64::MAX).unwrap() == content);
        }
    }

    #[test]
    fn truncated_and_padded_streams_are_refused() {
        let content = content();
        for encoded in [gzip(&content), zstd::encode_all(&content[..], 3).unwrap()] {
            for len in [encoded.len() - 1, encoded.len() / 2, 12] {
                assert!(
                    read(&encoded[..len], u64::MAX).is_err(),
                    "{len} of {}",
                    encoded.len()
                );
            }
            let garbage = [&encoded[..], b"garbage"].concat();
            assert!(read(&garbage, u64::MAX).is_err());
        }
    }

    #[test]
    fn bomb_is_stopped_at_the_limit() {
        let bomb = gzip(&vec![0; 10 << 20]);
        let error = read(&bomb, 1 << 20).unwrap_err();
        assert!(
            error.to_string().contains("over the limit of 1048576"),
            "{error}"
        );
        assert!(read(&bomb, 10 << 20).is_ok());
    }

    #[test]
    fn reader_that_gives_up_leaves_no_thread_behind() {
        let mut stream = LayerStream::start(layer(&content()), u64::MAX);
        let mut start = [0; 4];
        stream.read_exact(&mut start).unwrap();
        let worker = stream.worker.take().unwrap();
        drop(stream);
        worker.join().unwrap();
    }
}
