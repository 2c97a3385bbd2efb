//! The control queue (virtio 1.2, 5.1.6.5): how many queue pairs the driver uses.

use crate::chain::Chain;
use crate::serve::Answer;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

/// Bytes of the one command: class, command, number of pairs.
const COMMAND_LEN: usize = 4;

/// Answers a command. `set_pairs` says whether there can be so many.
pub(super) fn answer(chain: &Chain<'_>, set_pairs: impl FnOnce(u16) -> bool) -> Answer {
    let mut command = [0; COMMAND_LEN];
    let whole =
        chain.readable.copy_to(&mut command) == COMMAND_LEN && chain.readable.len() == COMMAND_LEN;
    let [class, kind, low, high] = command;
    let known = u32::from(class) == VIRTIO_NET_CTRL_MQ
        && u32::from(kind) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    let accepted = whole && known && set_pairs(u16::from_le_bytes([low, high]));
    let ack = if accepted {
        VIRTIO_NET_OK
    } else {
        VIRTIO_NET_ERR
    };
    // The values are 0 and 1.
    let written = chain.writable.copy_from(&ack.to_le_bytes()[..1]);
    Answer {
        written: u32::try_from(written).unwrap_or(0),
        moved: COMMAND_LEN,
    }
}
