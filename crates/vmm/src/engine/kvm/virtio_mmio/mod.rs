//! Virtio over MMIO, version 2 (virtio 1.2, 4.2), around a device back end.
//!
//! vCPU threads read and write registers; one thread per device serves its
//! queues. Both hold the transport's one lock while they touch the back end, so
//! a reset by the driver is complete when its register write returns. Nobody
//! holds two locks.

mod registers;
mod thread;
mod transport;

pub(super) use registers::QUEUE_NOTIFY;
pub(super) use thread::start;
pub(super) use transport::Transport;
