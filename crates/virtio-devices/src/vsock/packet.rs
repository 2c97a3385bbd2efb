//! The header of a vsock packet (virtio 1.2, 5.10.6), byte by byte.
//!
//! The crate virtio-vsock has a packet type too; it wants header and data in at
//! most two descriptors and refuses the scattered ones that a Linux guest sends
//! without copying (MSG_ZEROCOPY, since 6.7).
//!
//! | bytes | field     | bytes | field     |
//! |-------|-----------|-------|-----------|
//! | 0-7   | src_cid   | 28-29 | type      |
//! | 8-15  | dst_cid   | 30-31 | op        |
//! | 16-19 | src_port  | 32-35 | flags     |
//! | 20-23 | dst_port  | 36-39 | buf_alloc |
//! | 24-27 | len       | 40-43 | fwd_cnt   |

/// Bytes of a header.
pub(super) const HEADER_SIZE: usize = 44;
/// The host's context identifier.
pub(super) const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const TYPE_STREAM: u16 = 1;
/// Most bytes of data in a packet, either way; Linux's own limit.
pub(super) const MAX_DATA: usize = 64 << 10;
/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (VIRTIO_VSOCK_OP_*).
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_SIZE]) -> Header {
        Header {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The refusal of `self`, a packet that came from the guest.
    pub(super) fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Header::default()
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_byte_survives(bytes in prop::array::uniform32(any::<u8>()), tail in prop::array::uniform12(any::<u8>())) {
            let mut raw = [0; HEADER_SIZE];
            raw[..32].copy_from_slice(&bytes);
            raw[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::decode(&raw).encode(), raw);
        }
    }

    #[test]
    fn fields_lie_where_the_specification_says() {
        let header = Header {
            src_cid: 3,
            dst_port: 0x0403_0201,
            op: op::RW,
            fwd_cnt: 0xaabb_ccdd,
            ..Header::default()
        };
        let raw = header.encode();
        assert_eq!(raw[0], 3);
        assert_eq!(raw[20..24], [1, 2, 3, 4]);
        assert_eq!(raw[30..32], [5, 0]);
        assert_eq!(raw[40..44], [0xdd, 0xcc, 0xbb, 0xaa]);
    }
}
