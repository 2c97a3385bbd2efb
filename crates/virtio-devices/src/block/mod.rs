//! The disk bay: a virtio-blk device (virtio 1.2, 5.2) whose address space is
//! filled with files while the guest runs.
//!
//! A file that is attached gets an [`Extent`] of the address space; the guest
//! agent makes a partition of it. Everything else answers an I/O error, and
//! nothing in the guest has a reason to look there: a kernel for a bay is built
//! without partition table parsers.
//!
//! `extent` allocates addresses, `bay` holds the files and is what the control
//! side calls, `request` reads requests, `device` serves the queue, `limiter` says
//! which extent may go on, `storage` is what the host can do without data. The bay is
//! shared between the control threads and the device's thread. Locks: the
//! bay's table before a file's gate; nobody holds the table during I/O. A file's
//! limiter is the last.

mod bay;
mod device;
mod extent;
mod limiter;
mod request;
mod storage;
#[cfg(test)]
mod tests;

pub use bay::{BayError, BayHandle, NamedExtent, VolumeOptions};
pub use device::DiskBay;
pub use extent::Extent;
pub use limiter::{IoLimits, Rate};
