//! The area of file contents: appended to while members stream in.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::fs::{FallocateFlags, fallocate};

use crate::{BLOCK_SIZE, FileData, WriteError};

const BLOCK: usize = 4096;
/// Contents of small files are gathered into writes of this size.
const BUFFER_LEN: usize = 1 << 20;
/// Writes from this size on skip the buffer where they meet it empty.
const DIRECT_LEN: usize = 64 << 10;
static ZERO_BLOCK: [u8; BLOCK] = [0; BLOCK];

const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);

pub(crate) struct DataArea {
    file: File,
    /// What follows block `start` and is not yet written.
    buffer: Vec<u8>,
    start: u64,
    /// Bytes of all files ever appended, those removed again included.
    appended: u64,
    limit: u64,
}

impl DataArea {
    /// An area that begins behind block 0, for `limit` bytes of contents.
    pub(crate) fn new(file: File, limit: u64) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER_LEN),
            start: 1,
            appended: 0,
            limit,
        }
    }

    /// Begins a file's contents at the next whole block.
    pub(crate) fn begin(&mut self) -> Result<FileWriter<'_>, WriteError> {
        self.align();
        let first = self.start + (self.buffer.len() / BLOCK) as u64;
        let block = u32::try_from(first).map_err(|_| too_many_blocks())?;
        Ok(FileWriter {
            area: self,
            block,
            size: 0,
        })
    }

    /// Gives the blocks of a removed file back to the host's file system.
    pub(crate) fn free(&mut self, data: FileData) -> Result<(), WriteError> {
        if data.size == 0 {
            return Ok(());
        }
        let first = u64::from(data.block);
        let end = first + data.size.div_ceil(BLOCK_SIZE);
        if end > self.start {
            self.align();
            self.flush()?;
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(
            &self.file,
            punch,
            first * BLOCK_SIZE,
            (end - first) * BLOCK_SIZE,
        ) {
            // Where holes cannot be made, the contents merely stay unused.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(error) => Err(WriteError::Io {
                operation: "free blocks of a removed file in",
                source: error.into(),
            }),
        }
    }

    /// Writes what is buffered; returns the file and the first free block.
    pub(crate) fn finish(mut self) -> Result<(File, u64), WriteError> {
        self.align();
        self.flush()?;
        Ok((self.file, self.start))
    }

    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    fn align(&mut self) {
        let len = self.buffer.len().next_multiple_of(BLOCK);
        self.buffer.resize(len, 0);
    }

    /// Writes all whole blocks of the buffer.
    fn flush(&mut self) -> Result<(), WriteError> {
        let whole = self.buffer.len() / BLOCK * BLOCK;
        write_blocks(&self.file, &self.buffer[..whole], self.start * BLOCK_SIZE)?;
        self.buffer.drain(..whole);
        self.start += (whole / BLOCK) as u64;
        Ok(())
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            if self.buffer.is_empty() && bytes.len() >= DIRECT_LEN {
                let (whole, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
                write_blocks(&self.file, whole, self.start * BLOCK_SIZE)?;
                self.start += (whole.len() / BLOCK) as u64;
                bytes = rest;
                continue;
            }
            let room = BUFFER_LEN - self.buffer.len();
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            if self.buffer.len() == BUFFER_LEN {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn append_zeros(&mut self, mut len: u64) -> Result<(), WriteError> {
        let rest_of_block = (BLOCK - self.buffer.len() % BLOCK) % BLOCK;
        let head = usize::try_from(len).map_or(rest_of_block, |len| len.min(rest_of_block));
        self.append(&ZERO_BLOCK[..head])?;
        len -= head as u64;
        if len >= BLOCK_SIZE {
            self.flush()?;
            self.start += len / BLOCK_SIZE;
            len %= BLOCK_SIZE;
        }
        let tail = usize::try_from(len).unwrap_or(0);
        self.append(&ZERO_BLOCK[..tail])
    }
}

/// Takes the contents of one file, in order.
pub struct FileWriter<'a> {
    area: &'a mut DataArea,
    block: u32,
    size: u64,
}

impl FileWriter<'_> {
    /// Appends bytes.
    ///
    /// # Errors
    /// If they cannot be written, or exceed the limit on all contents.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.count(bytes.len() as u64)?;
        self.area.append(bytes)
    }

    /// Appends `len` zero bytes; whole blocks of them take no space.
    ///
    /// # Errors
    /// If what came before cannot be written, or the limit is exceeded.
    pub fn append_zeros(&mut self, len: u64) -> Result<(), WriteError> {
        self.count(len)?;
        self.area.append_zeros(len)
    }

    /// Ends the contents; [`crate::Builder::insert_file`] takes the result.
    pub fn finish(self) -> FileData {
        self.area.align();
        FileData {
            block: self.block,
            size: self.size,
        }
    }

    fn count(&mut self, len: u64) -> Result<(), WriteError> {
        let limit = self.area.limit;
        let appended = self
            .area
            .appended
            .checked_add(len)
            .filter(|sum| *sum <= limit);
        self.area.appended = appended.ok_or(WriteError::Limit {
            what: "bytes of file contents",
            limit,
        })?;
        self.size += len;
        Ok(())
    }
}

pub(crate) fn too_many_blocks() -> WriteError {
    WriteError::Limit {
        what: "blocks of the image",
        limit: u64::from(u32::MAX),
    }
}

/// Writes whole blocks at an offset, but not those of zeros: the place of each
/// was never written before, so it reads as zeros anyway.
fn write_blocks(file: &File, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
    let mut run = 0;
    let write = |from: usize, to: usize| -> io::Result<()> {
        if from < to {
            file.write_all_at(&bytes[from..to], offset + from as u64)
        } else {
            Ok(())
        }
    };
    for (index, block) in bytes.chunks_exact(BLOCK).enumerate() {
        if block == ZERO_BLOCK {
            write(run, index * BLOCK).map_err(WriteError::io("write file contents to"))?;
            run = (index + 1) * BLOCK;
        }
    }
    write(run, bytes.len()).map_err(WriteError::io("write file contents to"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn area(limit: u64) -> (DataArea, File) {
        let file = tempfile::tempfile().expect("tempfile");
        (
            DataArea::new(file.try_clone().expect("clones"), limit),
            file,
        )
    }

    fn read(file: &File, data: FileData) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(data.size).unwrap()];
        file.read_exact_at(&mut bytes, u64::from(data.block) * BLOCK_SIZE)
            .expect("reads");
        bytes
    }

    #[test]
    fn files_begin_at_whole_blocks_and_read_back() {
        let (mut area, file) = area(u64::MAX);
        let sizes = [
            0,
            1,
            4095,
            4096,
            4097,
            BUFFER_LEN - 1,
            BUFFER_LEN * 2 + 17,
            100,
        ];
        let mut written = Vec::new();
        for (index, size) in sizes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..size)
                .map(|at| (at * 7 + index) % 251 + 1)
                .map(|n| n.try_into().unwrap())
                .collect();
            let mut writer = area.begin().unwrap();
            for part in bytes.chunks(100_000) {
                writer.append(part).unwrap();
            }
            written.push((writer.finish(), bytes));
        }
        let (_, end) = area.finish().unwrap();
        let mut next = 1;
        for (data, bytes) in &written {
            assert_eq!(u64::from(data.block), next);
            assert!(read(&file, *data) == *bytes, "{} bytes", data.size);
            next += data.size.div_ceil(BLOCK_SIZE);
        }
        assert_eq!(end, next);
    }

    #[test]
    fn zero_blocks_take_no_space() {
        let (mut area, file) = area(u64::MAX);
        let mut writer = area.begin().unwrap();
        writer.append(b"head").unwrap();
        writer.append_zeros(1 << 30).unwrap();
        writer.append(b"tail").unwrap();
        writer.append(&vec![0; 8 << 20]).unwrap();
        writer.append(b"!").unwrap();
        let data = writer.finish();
        area.finish().unwrap();
        let stat = file.metadata().unwrap();
        assert!(stat.blocks() * 512 < 100_000, "{} blocks", stat.blocks());
        let mut tail = [0; 4];
        file.read_exact_at(&mut tail, BLOCK_SIZE + 4 + (1 << 30))
            .unwrap();
        assert_eq!(&tail, b"tail");
        assert_eq!(data.size, 8 + (1 << 30) + (8 << 20) + 1);
    }

    #[test]
    fn freed_contents_give_their_space_back() {
        let (mut area, file) = area(u64::MAX);
        let mut writer = area.begin().unwrap();
        writer.append(&vec![7; 4 << 20]).unwrap();
        let gone = writer.finish();
        let mut writer = area.begin().unwrap();
        writer.append(b"stays").unwrap();
        let stays = writer.finish();
        area.free(gone).unwrap();
        area.finish().unwrap();
        assert_eq!(read(&file, stays), b"stays");
        assert!(file.metadata().unwrap().blocks() * 512 < 100_000);
    }

    #[test]
    fn limit_on_contents_counts_holes_too() {
        let (mut area, _file) = area(10_000);
        let mut writer = area.begin().unwrap();
        writer.append(&[1; 5000]).unwrap();
        writer.append_zeros(5000).unwrap();
        let error = writer.append(b"x").unwrap_err();
        assert!(
            matches!(error, WriteError::Limit { limit: 10_000, .. }),
            "{error}"
        );
    }
}
