//! What a device back end is, whatever carries it.
//!
//! A back end is written once against virtio-queue and guest memory. The kvm
//! engine serves it over virtio-mmio in process, the qemu engine over
//! vhost-user; it knows neither. One thread serves one device.

use std::io;
use std::os::fd::BorrowedFd;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// One queue as the transport lends it to a back end for one call.
pub trait VirtQueue {
    /// The rings.
    fn queue(&mut self) -> &mut Queue;
    /// Interrupts the guest for this queue, unless it asked not to be. To be
    /// called after used descriptors were added.
    fn signal(&mut self) -> io::Result<()>;
    /// Interrupts the guest for this queue, whatever it asked: for a back end
    /// that writes its used ring itself.
    fn interrupt(&mut self) -> io::Result<()>;
}

/// The queues of a device, in the order of the virtio specification.
pub type Queues<'a> = [&'a mut dyn VirtQueue];

/// A guest or host fault that ends a device. The transport marks it broken
/// (DEVICE_NEEDS_RESET) and serves it no more; the VM and the host go on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the queue protocol.
    #[error("the guest broke the protocol of queue {queue}")]
    Queue {
        /// Index of the queue.
        queue: u16,
        /// What virtio-queue found.
        #[source]
        source: virtio_queue::Error,
    },
    /// The guest could not be interrupted, or a host descriptor failed.
    #[error("a host descriptor of the device failed")]
    Host(#[from] io::Error),
}

/// A virtio device back end (virtio 1.2, chapter 5).
pub trait VirtioDevice: Send {
    /// Name in logs and thread names, at most ten characters.
    fn name(&self) -> &'static str;
    /// Device ID (virtio 1.2, 5).
    fn device_type(&self) -> u32;
    /// Feature bits that the device offers, VIRTIO_F_VERSION_1 among them;
    /// without bits of the transport's own.
    fn features(&self) -> u64;
    /// Largest size of each queue; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// Device configuration space from `offset` on; bytes past its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver writes into the configuration space. Most devices have nothing
    /// that can be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready (DRIVER_OK) and uses these features.
    fn activate(&mut self, features: u64);
    /// The driver reset the device: back to the state before `activate`.
    fn reset(&mut self);
    /// The guest rang the bell of queue `index`.
    fn queue_event(
        &mut self,
        index: u16,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError>;
    /// A descriptor (may be an epoll) that is readable while `host_event` has
    /// work; level-triggered. The same one for the life of the device.
    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// `host_fd` was readable. Must not block.
    fn host_event(
        &mut self,
        _memory: &GuestMemoryMmap,
        _queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        Ok(())
    }
}
