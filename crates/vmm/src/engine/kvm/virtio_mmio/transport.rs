//! One device's registers, status and queues.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use virtio_devices::{DeviceError, VirtQueue, VirtioDevice};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::registers::{self as reg, interrupt, status};

/// VIRTIO_F_VERSION_1 and VIRTIO_F_EVENT_IDX (virtio 1.2, 6).
const FEATURE_VERSION_1: u64 = 1 << 32;
const FEATURE_EVENT_IDX: u64 = 1 << 29;

/// The interrupt line of one device.
pub(super) struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    fn raise(&self, cause: u32) -> io::Result<()> {
        // Before the line: the guest's handler reads it at once.
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.line.write(1)
    }
}

/// What the lock guards.
pub(super) struct Inner {
    pub(super) device: Box<dyn VirtioDevice>,
    queues: Vec<Queue>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    /// The driver is ready and the device not broken.
    pub(super) active: bool,
    was_active: bool,
    /// The device's thread is to end.
    pub(super) stop: bool,
}

/// A device back end behind its register window.
pub(crate) struct Transport {
    memory: GuestMemoryMmap,
    name: &'static str,
    interrupt: Interrupt,
    /// Wakes the device's thread to look at `active` and `stop` again.
    pub(super) control: EventFd,
    /// One per queue; KVM rings them at a write to QueueNotify.
    bells: Vec<EventFd>,
    /// A duplicate of the back end's descriptor, for polling without the lock.
    pub(super) host_fd: Option<OwnedFd>,
    inner: Mutex<Inner>,
}

/// One queue, lent to the back end for one call.
struct LentQueue<'a> {
    queue: &'a mut Queue,
    memory: &'a GuestMemoryMmap,
    interrupt: &'a Interrupt,
}

impl VirtQueue for LentQueue<'_> {
    fn queue(&mut self) -> &mut Queue {
        self.queue
    }

    fn signal(&mut self) -> io::Result<()> {
        let wanted = self
            .queue
            .needs_notification(self.memory)
            .map_err(io::Error::other)?;
        if wanted {
            self.interrupt()?;
        }
        Ok(())
    }

    fn interrupt(&mut self) -> io::Result<()> {
        self.interrupt.raise(interrupt::USED_BUFFER)
    }
}

/// What a device's thread has to do.
pub(super) enum Event {
    /// The bell of this queue rang.
    Bell(u16),
    /// The back end's own descriptor is readable.
    Host,
}

impl Transport {
    /// A transport for `device` whose queues lie in `memory`.
    pub(crate) fn new(device: Box<dyn VirtioDevice>, memory: GuestMemoryMmap) -> io::Result<Self> {
        let mut queues = Vec::new();
        let mut bells = Vec::new();
        for &size in device.queue_sizes() {
            queues.push(Queue::new(size).map_err(io::Error::other)?);
            bells.push(EventFd::new(EFD_NONBLOCK)?);
        }
        let host_fd = device
            .host_fd()
            .map(|fd| fd.try_clone_to_owned())
            .transpose()?;
        Ok(Self {
            memory,
            name: device.name(),
            interrupt: Interrupt {
                status: AtomicU32::new(0),
                line: EventFd::new(EFD_NONBLOCK)?,
            },
            control: EventFd::new(EFD_NONBLOCK)?,
            bells,
            host_fd,
            inner: Mutex::new(Inner {
                device,
                queues,
                status: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                active: false,
                was_active: false,
                stop: false,
            }),
        })
    }

    /// The back end's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// To be connected to the guest's interrupt controller.
    pub(crate) fn interrupt_line(&self) -> &EventFd {
        &self.interrupt.line
    }

    /// Bell of each queue.
    pub(crate) fn bells(&self) -> &[EventFd] {
        &self.bells
    }

    /// Whether a driver of the guest ever used the device.
    pub(crate) fn was_active(&self) -> bool {
        self.lock().was_active
    }

    /// Ends the device's thread.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.wake();
    }

    /// A back end that panicked is in some state of its own; the registers are
    /// plain values and stay usable.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes too.
        let _ = self.control.write(1);
    }

    /// Lets the back end serve `events`; a fault marks the device broken.
    pub(super) fn serve(&self, events: &[Event]) {
        let mut inner = self.lock();
        for event in events {
            if !inner.active {
                return;
            }
            if let Err(error) = self.serve_one(&mut inner, event) {
                tracing::warn!(
                    device = self.name,
                    error = &error as &dyn std::error::Error,
                    "the device is broken until its driver resets it"
                );
                self.break_device(&mut inner);
            }
        }
    }

    fn serve_one(&self, inner: &mut Inner, event: &Event) -> Result<(), DeviceError> {
        let Inner { device, queues, .. } = inner;
        let mut lent: Vec<LentQueue<'_>> = queues
            .iter_mut()
            .map(|queue| LentQueue {
                queue,
                memory: &self.memory,
                interrupt: &self.interrupt,
            })
            .collect();
        let mut lent: Vec<&mut dyn VirtQueue> = lent
            .iter_mut()
            .map(|queue| -> &mut dyn VirtQueue { queue })
            .collect();
        match *event {
            Event::Bell(index) => device.queue_event(index, &self.memory, &mut lent),
            Event::Host => device.host_event(&self.memory, &mut lent),
        }
    }

    /// Sets DEVICE_NEEDS_RESET and tells the driver (virtio 1.2, 2.1.2).
    fn break_device(&self, inner: &mut Inner) {
        inner.active = false;
        inner.status |= status::NEEDS_RESET;
        if inner.status & status::DRIVER_OK != 0 {
            // The line is an eventfd of ours; a full counter interrupts too.
            let _ = self.interrupt.raise(interrupt::CONFIG_CHANGE);
        }
        self.wake();
    }

    /// The guest reads `data.len()` bytes at `offset` of the window.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            data.fill(0);
            self.lock().device.read_config(offset, data);
            return;
        }
        let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) else {
            data.fill(0);
            return;
        };
        *data = self.read_register(offset).to_le_bytes();
    }

    fn read_register(&self, offset: u64) -> u32 {
        let half = |value: u64, select: u32| match select {
            0 => value & 0xffff_ffff,
            1 => value >> 32,
            _ => 0,
        };
        let inner = self.lock();
        let queue = inner.queues.get(inner.queue_sel as usize);
        match offset {
            reg::MAGIC => reg::MAGIC_VALUE,
            reg::VERSION => reg::VERSION_VALUE,
            reg::DEVICE_ID => inner.device.device_type(),
            reg::VENDOR_ID => reg::VENDOR_VALUE,
            reg::DEVICE_FEATURES => {
                let offered = half(inner.device.features(), inner.device_features_sel);
                u32::try_from(offered).unwrap_or(0)
            }
            reg::QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            reg::QUEUE_READY => queue.is_some_and(Queue::ready).into(),
            reg::INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            reg::STATUS => inner.status,
            offset if reg::SHM.contains(&offset) => u32::MAX,
            // No back end changes its configuration: always generation 0.
            reg::CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// The guest writes `data` at `offset` of the window.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            let mut inner = self.lock();
            if inner.status & status::DRIVER != 0 {
                inner.device.write_config(offset, data);
            }
            return;
        }
        if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            reg::INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
                return;
            }
            reg::QUEUE_NOTIFY => {
                // Normally KVM rings the bell itself and no one comes here.
                if let Some(bell) = self.bells.get(value as usize) {
                    let _ = bell.write(1);
                }
                return;
            }
            _ => {}
        }
        let mut inner = self.lock();
        match offset {
            reg::DEVICE_FEATURES_SEL => inner.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => inner.driver_features_sel = value,
            reg::DRIVER_FEATURES => inner.set_driver_features(value),
            reg::QUEUE_SEL => inner.queue_sel = value,
            reg::STATUS => self.write_status(&mut inner, value),
            _ => {
                if !inner.write_queue_register(offset, value, &self.memory) {
                    self.break_device(&mut inner);
                }
            }
        }
    }

    fn write_status(&self, inner: &mut Inner, value: u32) {
        if value == 0 {
            self.reset(inner);
            return;
        }
        let new = value & !inner.status;
        let mut accepted =
            inner.status | value & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        let driver_known = accepted & status::DRIVER != 0;
        if new & status::FEATURES_OK != 0 && driver_known && inner.accept_features() {
            accepted |= status::FEATURES_OK;
        }
        let broken = inner.status & (status::NEEDS_RESET | status::FAILED) != 0;
        if new & status::DRIVER_OK != 0 && accepted & status::FEATURES_OK != 0 && !broken {
            accepted |= status::DRIVER_OK;
            let features = inner.driver_features;
            inner.device.activate(features);
            inner.active = true;
            inner.was_active = true;
            self.wake();
        }
        inner.status = accepted;
        if value & status::FAILED != 0 {
            inner.active = false;
            tracing::warn!(
                device = self.name,
                "the guest's driver gave up on the device"
            );
            self.wake();
        }
    }

    fn reset(&self, inner: &mut Inner) {
        inner.active = false;
        if inner.status & status::DRIVER_OK != 0 {
            inner.device.reset();
        }
        inner.queues.iter_mut().for_each(Queue::reset);
        inner.status = 0;
        inner.device_features_sel = 0;
        inner.driver_features_sel = 0;
        inner.driver_features = 0;
        inner.queue_sel = 0;
        self.interrupt.status.store(0, Ordering::SeqCst);
        self.wake();
    }
}

impl Inner {
    fn set_driver_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let (shift, keep) = match self.driver_features_sel {
            0 => (0, 0xffff_ffff << 32),
            1 => (32, 0xffff_ffff),
            _ => return,
        };
        self.driver_features = self.driver_features & keep | u64::from(value) << shift;
    }

    /// Whether the driver chose what was offered, version 1 among it.
    fn accept_features(&mut self) -> bool {
        let chosen = self.driver_features;
        if chosen & !self.device.features() != 0 || chosen & FEATURE_VERSION_1 == 0 {
            return false;
        }
        let event_idx = chosen & FEATURE_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(event_idx);
        }
        true
    }

    /// Sets up the selected queue; false if what the driver wants cannot be.
    fn write_queue_register(&mut self, offset: u64, value: u32, memory: &GuestMemoryMmap) -> bool {
        let phase = self.status & (status::FEATURES_OK | status::DRIVER_OK | status::FAILED);
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return true;
        };
        if phase != status::FEATURES_OK {
            // Too early or too late: ignored, as no driver does that.
            return true;
        }
        match offset {
            reg::QUEUE_NUM => {
                return u16::try_from(value).is_ok_and(|size| queue.try_set_size(size).is_ok());
            }
            reg::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            reg::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            reg::QUEUE_READY => {
                queue.set_ready(value == 1);
                if value == 1 && !queue.is_valid(memory) {
                    queue.set_ready(false);
                    return false;
                }
            }
            _ => {}
        }
        true
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
