//! The header before each frame: struct virtio_net_hdr with `num_buffers`
//! (virtio 1.2, 5.1.6), as the TAP takes and gives it, too.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | flags |
//! | 1 | gso_type |
//! | 2..4 | hdr_len |
//! | 4..6 | gso_size |
//! | 6..8 | csum_start |
//! | 8..10 | csum_offset |
//! | 10..12 | num_buffers, received frames only |

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Length of the header.
pub(super) const HEADER_LEN: usize = 12;
/// Where `num_buffers` lies.
pub(super) const NUM_BUFFERS: usize = 10;
/// Length of an Ethernet header.
pub(super) const ETHERNET_LEN: usize = 14;
/// Header and frame at their largest: an IP packet of 65535 bytes behind an
/// Ethernet header with a VLAN tag.
pub(super) const MAX_PACKET: usize = HEADER_LEN + ETHERNET_LEN + 4 + 65_535;

/// What is copied of a frame before it is looked at.
pub(super) type Head = [u8; HEADER_LEN + ETHERNET_LEN];

/// Whether the driver that took `features` may send a frame with this header;
/// clears what the host does not need to know.
pub(super) fn accept(head: &mut Head, features: u64) -> bool {
    let has = |feature: u32| features & 1 << feature != 0;
    // No field but these two bytes is looked at unless one of them is set, and
    // then the host's kernel checks it against the frame.
    let flags = u32::from(head[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM;
    let gso = u32::from(head[1]);
    let segmented = match gso & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => false,
        VIRTIO_NET_HDR_GSO_TCPV4 if has(VIRTIO_NET_F_HOST_TSO4) => true,
        VIRTIO_NET_HDR_GSO_TCPV6 if has(VIRTIO_NET_F_HOST_TSO6) => true,
        _ => return false,
    };
    let needs_checksum = flags != 0;
    if needs_checksum && !has(VIRTIO_NET_F_CSUM) || segmented && !needs_checksum {
        return false;
    }
    if gso & VIRTIO_NET_HDR_GSO_ECN != 0 && !(segmented && has(VIRTIO_NET_F_HOST_ECN)) {
        return false;
    }
    head[0] = u8::from(needs_checksum);
    head[NUM_BUFFERS..HEADER_LEN].fill(0);
    if !needs_checksum {
        head[..HEADER_LEN].fill(0);
    }
    true
}

/// The address from which a frame claims to come.
pub(super) fn source(head: &Head) -> &[u8] {
    &head[HEADER_LEN + 6..HEADER_LEN + 12]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFLOADS: u64 =
        1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;

    fn head(flags: u8, gso: u8) -> Head {
        let mut head = [0xee; HEADER_LEN + ETHERNET_LEN];
        head[0] = flags;
        head[1] = gso;
        head
    }

    #[test]
    fn a_plain_frame_has_an_empty_header() {
        let mut plain = head(0, 0);
        assert!(accept(&mut plain, 0));
        assert_eq!(plain[..HEADER_LEN], [0; HEADER_LEN]);
        assert_eq!(plain[HEADER_LEN..], [0xee; ETHERNET_LEN]);
    }

    #[test]
    fn offloads_need_their_feature() {
        for (flags, gso, accepted) in [
            (1, 0, true),
            (1, 1, true),
            (1, 4, true),
            // Segments need checksums.
            (0, 1, false),
            // UDP fragments, UDP segments, ECN, nonsense: not offered.
            (1, 3, false),
            (1, 5, false),
            (1, 0x81, false),
            (1, 0x80, false),
            (1, 0x7f, false),
        ] {
            assert_eq!(accept(&mut head(flags, gso), OFFLOADS), accepted, "{gso}");
        }
        assert!(!accept(&mut head(1, 0), 0));
        assert!(!accept(&mut head(1, 1), 1 << VIRTIO_NET_F_CSUM));
    }

    proptest! {
        #[test]
        fn what_is_accepted_asks_for_nothing_more(bytes in any::<[u8; 12]>(), features in any::<u64>()) {
            let mut head = head(0, 0);
            head[..HEADER_LEN].copy_from_slice(&bytes);
            if accept(&mut head, features) {
                prop_assert!(head[0] <= 1);
                prop_assert!(head[1] == 0 || head[0] == 1);
                prop_assert_eq!(&head[NUM_BUFFERS..HEADER_LEN], &[0, 0]);
            }
        }
    }
}
