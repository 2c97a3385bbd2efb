//! Virtio device back ends, written once for every engine.

mod device;

pub use device::{DeviceError, Queues, VirtQueue, VirtioDevice};
