//! A ring as the vhost-user library knows it, that rings once when the bell of
//! its driver is exchanged.
//!
//! QEMU starts a socket device's rings with a bell that nobody hears and hands
//! the real one (SET_VRING_CALL) last, without waiting for an answer. On a busy
//! host the worker can meet the driver's first buffers in between. The interrupt
//! of those is lost, and with VIRTIO_RING_F_EVENT_IDX so is every later one: the
//! driver has not moved its `used_event`, so none seems needed. An interrupt too
//! many does no harm (virtio 1.2, 2.7.7), so each new bell is rung.

use std::fs::File;
use std::io;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;

type Memory = super::vhost_user::Memory;

/// See the module's documentation.
#[derive(Clone)]
pub(super) struct Ring(VringMutex<Memory>);

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = <VringMutex<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

/// Methods that are those of the ring inside.
macro_rules! as_inside {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self $(, $argument: $type)*) $(-> $result)? {
            self.0.$name($($argument),*)
        })*
    };
}

impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }

    fn set_call(&self, file: Option<File>) {
        let rings = file.is_some();
        self.0.set_call(file);
        if rings {
            // A bell that cannot be rung fails again at the next buffer, where
            // somebody hears of it.
            let _ = self.0.signal_used_queue();
        }
    }

    as_inside! {
        fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G;
        fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G;
        fn add_used(&self, head: u16, len: u32) -> Result<(), Error>;
        fn signal_used_queue(&self) -> io::Result<()>;
        fn enable_notification(&self) -> Result<bool, Error>;
        fn disable_notification(&self) -> Result<(), Error>;
        fn needs_notification(&self) -> Result<bool, Error>;
        fn set_enabled(&self, enabled: bool);
        fn set_queue_info(&self, descriptors: u64, avail: u64, used: u64) -> Result<(), Error>;
        fn queue_next_avail(&self) -> u16;
        fn set_queue_next_avail(&self, base: u16);
        fn set_queue_next_used(&self, index: u16);
        fn queue_used_idx(&self) -> Result<u16, Error>;
        fn set_queue_size(&self, size: u16);
        fn set_queue_event_idx(&self, enabled: bool);
        fn set_queue_ready(&self, ready: bool);
        fn set_kick(&self, file: Option<File>);
        fn read_kick(&self) -> io::Result<bool>;
        fn set_err(&self, file: Option<File>);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use vm_memory::GuestMemoryMmap;

    #[test]
    fn regression_a_new_bell_rings_for_what_the_old_one_did_not_tell() {
        let ring = Ring::new(Memory::new(GuestMemoryMmap::new()), 16).unwrap();
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        let rung = || rustix::io::read(&bell, &mut [0u8; 8]).is_ok();
        assert!(!rung());
        ring.set_call(Some(bell.try_clone().unwrap().into()));
        assert!(rung());
        ring.set_call(None);
        assert!(!rung());
    }
}
