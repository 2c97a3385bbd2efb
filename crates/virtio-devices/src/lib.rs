//! Virtio device back ends, written once for every engine.
//!
//! A back end parses descriptor chains that a hostile guest wrote. [`chain`]
//! checks every chain once, whole, before a device sees it; what a device then
//! holds are slices of guest memory, never addresses. A chain that breaks the
//! queue protocol ends the device ([`DeviceError::Queue`]); a well-formed chain
//! with a bad request in it is answered as its device's chapter of virtio 1.2
//! says. No call does unbounded work: a device that has more to do raises its
//! own [`wakeup`] and goes on when its thread polls next.

mod alarm;
mod block;
mod chain;
mod console;
mod device;
mod fs;
mod guest_io;
mod net;
mod rng;
mod serve;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
mod vsock;
mod wakeup;

#[cfg(test)]
mod hostile_tests;

pub use block::{BayError, BayHandle, DiskBay, Extent, IoLimits, NamedExtent, Rate, VolumeOptions};
pub use console::Console;
pub use device::{DeviceError, Queues, VirtQueue, VirtioDevice};
pub use fs::{Fs, FsHandle, FsLimits, NamedShare, ShareAccess, ShareError};
pub use net::{MAX_QUEUE_PAIRS, Net, NetCounters, NetError, NetHandle, NetSettings};
pub use rng::Rng;
pub use vsock::Vsock;
