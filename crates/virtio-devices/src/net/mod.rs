//! The network device (virtio 1.2, 5.1) on a TAP.
//!
//! Frames are moved between the TAP and guest memory without a copy where the
//! guest's buffers allow it. Neither side can make the other wait for more than
//! itself: a guest without receive buffers has the TAP unwatched until it rings,
//! a full TAP leaves the guest's frames in its ring until it has room.
//!
//! Of a frame that the guest sends, the virtio header and the Ethernet addresses
//! are copied before they are looked at, and the copy is what is sent: the guest
//! can change its memory at any time.

mod control;
mod counters;
mod device;
mod header;
mod rx;
mod tap;
#[cfg(test)]
mod tests;
mod tx;
mod used;

pub use counters::{NetCounters, NetHandle};
pub use device::{MAX_QUEUE_PAIRS, Net, NetSettings};
pub use tap::NetError;

#[cfg(test)]
pub(crate) use tap::Tap;
