//! Reads block requests (virtio 1.2, 5.2.6) out of descriptor chains.

use crate::chain::{Buffers, Chain};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

/// The unit of addresses in requests, whatever block size the device has.
pub(super) const SECTOR: u64 = 512;
/// Most ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: usize = 16;
/// Most bytes that one request may read or write. The driver's requests are
/// bound by seg_max and its own max_sectors, far below.
const MAX_DATA: usize = 256 << 20;
/// Bytes of struct virtio_blk_req before the data.
const HEADER_SIZE: usize = 16;
/// Bytes of struct virtio_blk_discard_write_zeroes.
const RANGE_SIZE: usize = 16;

/// A request, and where its status goes.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) operation: Operation<'a>,
    /// The last byte that the device may write.
    pub(super) status: Buffers<'a>,
    /// Bytes that the device may write before the status.
    pub(super) writable_data: usize,
}

/// What the driver asks for. Offsets and lengths are in bytes.
#[derive(Debug)]
pub(super) enum Operation<'a> {
    Read {
        offset: u64,
        data: Buffers<'a>,
    },
    Write {
        offset: u64,
        data: Buffers<'a>,
    },
    Flush,
    GetId {
        data: Buffers<'a>,
    },
    Discard {
        ranges: Vec<Range>,
    },
    WriteZeroes {
        ranges: Vec<Range>,
    },
    /// A type that the device does not know (answer: UNSUPP).
    Unsupported,
    /// A request that makes no sense (answer: IOERR).
    Malformed,
}

/// One range of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// The bits of `flags`; bit 0 is unmap.
    pub(super) flags: u32,
}

impl<'a> Request<'a> {
    /// Reads a request. `None` if the chain has no byte for a status, so that
    /// nothing can be answered.
    pub(super) fn parse(chain: Chain<'a>) -> Option<Request<'a>> {
        let Chain {
            mut readable,
            mut writable,
            ..
        } = chain;
        let writable_data = writable.len().checked_sub(1)?;
        let status = writable.split_off(writable_data);
        let data = readable.split_off(HEADER_SIZE);
        let operation = operation(&readable, data, writable).unwrap_or(Operation::Malformed);
        Some(Request {
            operation,
            status,
            writable_data,
        })
    }
}

fn operation<'a>(
    header: &Buffers<'a>,
    sent: Buffers<'a>,
    asked: Buffers<'a>,
) -> Option<Operation<'a>> {
    let mut bytes = [0; HEADER_SIZE];
    if header.copy_to(&mut bytes) != HEADER_SIZE {
        return None;
    }
    let kind = u32_at(&bytes, 0);
    let sector = u64_at(&bytes, 8);
    Some(match kind {
        VIRTIO_BLK_T_IN => Operation::Read {
            offset: checked_transfer(sector, &asked)?,
            data: asked,
        },
        VIRTIO_BLK_T_OUT => Operation::Write {
            offset: checked_transfer(sector, &sent)?,
            data: sent,
        },
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID => Operation::GetId { data: asked },
        VIRTIO_BLK_T_DISCARD => Operation::Discard {
            ranges: ranges(&sent)?,
        },
        VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes {
            ranges: ranges(&sent)?,
        },
        _ => Operation::Unsupported,
    })
}

/// Byte offset of a transfer of whole sectors.
fn checked_transfer(sector: u64, data: &Buffers<'_>) -> Option<u64> {
    let len = data.len();
    if len == 0 || len > MAX_DATA || !(len as u64).is_multiple_of(SECTOR) {
        return None;
    }
    sector.checked_mul(SECTOR)
}

fn ranges(data: &Buffers<'_>) -> Option<Vec<Range>> {
    let len = data.len();
    if len == 0 || !len.is_multiple_of(RANGE_SIZE) || len > MAX_RANGES * RANGE_SIZE {
        return None;
    }
    let mut bytes = [0; MAX_RANGES * RANGE_SIZE];
    data.copy_to(&mut bytes);
    bytes[..len]
        .chunks_exact(RANGE_SIZE)
        .map(|range| {
            Some(Range {
                offset: u64_at(range, 0).checked_mul(SECTOR)?,
                length: u64::from(u32_at(range, 8)) * SECTOR,
                flags: u32_at(range, 12),
            })
        })
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
