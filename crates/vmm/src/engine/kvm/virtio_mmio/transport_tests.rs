//! The register protocol, by a driver that obeys it and ones that do not.

use super::super::super::memory::allocate;
use super::super::start;
use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use virtio_devices::{Console, Queues};
use vm_memory::{Bytes, GuestAddress};

const FEATURES: u64 = FEATURE_VERSION_1 | 1;
const QUEUE_SIZE: u16 = 16;

/// Fails when asked to, and counts what it is told.
#[derive(Default)]
struct Told {
    activated: Vec<u64>,
    resets: usize,
    bells: Vec<u16>,
    config_writes: usize,
    fail: bool,
}

struct Fake(Arc<Mutex<Told>>);

impl VirtioDevice for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 {
            data[0] = 0x5a;
        }
    }
    fn write_config(&mut self, _: u64, _: &[u8]) {
        self.0.lock().unwrap().config_writes += 1;
    }
    fn activate(&mut self, features: u64) {
        self.0.lock().unwrap().activated.push(features);
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }
    fn queue_event(
        &mut self,
        index: u16,
        _: &GuestMemoryMmap,
        _: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let mut told = self.0.lock().unwrap();
        told.bells.push(index);
        if told.fail {
            return Err(io::Error::other("asked to fail").into());
        }
        Ok(())
    }
}

fn fake() -> (Transport, Arc<Mutex<Told>>) {
    let told = Arc::<Mutex<Told>>::default();
    let device = Box::new(Fake(told.clone()));
    (Transport::new(device, allocate(1).unwrap()).unwrap(), told)
}

impl Transport {
    fn get(&self, register: u64) -> u32 {
        let mut data = [0xee; 4];
        self.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    fn add_status(&self, bits: u32) -> u32 {
        self.set(reg::STATUS, self.get(reg::STATUS) | bits);
        self.get(reg::STATUS)
    }

    /// Up to FEATURES_OK with these features.
    fn negotiate(&self, features: u64) -> bool {
        self.set(reg::STATUS, 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set(reg::DRIVER_FEATURES_SEL, select);
            self.set(reg::DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
        self.add_status(status::FEATURES_OK) & status::FEATURES_OK != 0
    }

    fn set_queue(&self, index: u32, size: u16, desc: u32, avail: u32, used: u32) {
        self.set(reg::QUEUE_SEL, index);
        self.set(reg::QUEUE_NUM, size.into());
        for (register, address) in [
            (reg::QUEUE_DESC_LOW, desc),
            (reg::QUEUE_DRIVER_LOW, avail),
            (reg::QUEUE_DEVICE_LOW, used),
        ] {
            self.set(register, address);
            self.set(register + 4, 0);
        }
        self.set(reg::QUEUE_READY, 1);
    }

    fn broken(&self) -> bool {
        self.get(reg::STATUS) & status::NEEDS_RESET != 0
    }
}

#[test]
fn identity_registers_say_what_it_is() {
    let (transport, _) = fake();
    assert_eq!(transport.get(reg::MAGIC), 0x7472_6976);
    assert_eq!(transport.get(reg::VERSION), 2);
    assert_eq!(transport.get(reg::DEVICE_ID), 42);
    transport.set(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(transport.get(reg::DEVICE_FEATURES), 1);
    assert_eq!(transport.get(reg::QUEUE_NUM_MAX), 16);
    transport.set(reg::QUEUE_SEL, 2);
    assert_eq!(transport.get(reg::QUEUE_NUM_MAX), 0);
    assert_eq!(transport.get(0xb0), u32::MAX);
    let mut byte = [0];
    transport.read(reg::CONFIG, &mut byte);
    assert_eq!(byte, [0x5a]);
}

#[test]
fn driver_that_obeys_activates_the_device() {
    let (transport, told) = fake();
    assert!(transport.negotiate(FEATURES));
    transport.set_queue(0, 8, 0x1000, 0x2000, 0x3000);
    assert_eq!(transport.get(reg::QUEUE_READY), 1);
    let ok = transport.add_status(status::DRIVER_OK);
    assert_eq!(
        ok & (status::DRIVER_OK | status::NEEDS_RESET),
        status::DRIVER_OK
    );
    assert_eq!(told.lock().unwrap().activated, [FEATURES]);
    assert!(transport.was_active());
}

#[test]
fn features_not_offered_or_too_old_are_refused() {
    let (transport, told) = fake();
    assert!(!transport.negotiate(FEATURES | 2));
    assert!(!transport.negotiate(1));
    transport.add_status(status::DRIVER_OK);
    assert_eq!(transport.get(reg::STATUS) & status::DRIVER_OK, 0);
    assert!(told.lock().unwrap().activated.is_empty());
    assert!(transport.negotiate(FEATURE_VERSION_1));
}

#[test]
fn rings_that_cannot_be_break_the_device() {
    let far = 0xffff_f000;
    for (size, desc, avail, used) in [
        (0, 0x1000, 0x2000, 0x3000),
        (3, 0x1000, 0x2000, 0x3000),
        (32, 0x1000, 0x2000, 0x3000),
        (8, far, 0x2000, 0x3000),
        (8, 0x1000, far, 0x3000),
        (8, 0x1000, 0x2000, far),
    ] {
        let (transport, _) = fake();
        assert!(transport.negotiate(FEATURES));
        transport.set_queue(1, size, desc, avail, used);
        assert!(transport.broken(), "{size} {desc:#x} {avail:#x} {used:#x}");
        transport.add_status(status::DRIVER_OK);
        assert!(!transport.was_active());
    }
}

#[test]
fn queues_change_only_between_features_and_driver_ok() {
    let (transport, _) = fake();
    transport.set_queue(0, 8, 0x1000, 0x2000, 0x3000);
    assert_eq!(transport.get(reg::QUEUE_READY), 0);
    transport.negotiate(FEATURES);
    transport.set_queue(0, 8, 0x1000, 0x2000, 0x3000);
    transport.add_status(status::DRIVER_OK);
    transport.set(reg::QUEUE_READY, 0);
    assert_eq!(transport.get(reg::QUEUE_READY), 1);
}

#[test]
fn reset_brings_everything_back() {
    let (transport, told) = fake();
    transport.negotiate(FEATURES);
    transport.set_queue(0, 8, 0x1000, 0x2000, 0x3000);
    transport.add_status(status::DRIVER_OK);
    transport.set(reg::STATUS, 0);
    assert_eq!(told.lock().unwrap().resets, 1);
    assert_eq!(transport.get(reg::STATUS), 0);
    transport.set(reg::QUEUE_SEL, 0);
    assert_eq!(transport.get(reg::QUEUE_READY), 0);
    transport.serve(&[Event::Bell(0)]);
    assert!(told.lock().unwrap().bells.is_empty());
    assert!(transport.negotiate(FEATURES));
    transport.add_status(status::DRIVER_OK);
    transport.serve(&[Event::Bell(0)]);
    assert_eq!(told.lock().unwrap().bells, [0]);
}

#[test]
fn a_fault_breaks_the_device_until_its_reset() {
    let (transport, told) = fake();
    transport.negotiate(FEATURES);
    transport.add_status(status::DRIVER_OK);
    told.lock().unwrap().fail = true;
    transport.serve(&[Event::Bell(0), Event::Bell(1)]);
    assert_eq!(told.lock().unwrap().bells, [0]);
    assert!(transport.broken());
    assert_eq!(
        transport.get(reg::INTERRUPT_STATUS),
        interrupt::CONFIG_CHANGE
    );
    transport.set(reg::INTERRUPT_ACK, interrupt::CONFIG_CHANGE);
    assert_eq!(transport.get(reg::INTERRUPT_STATUS), 0);
    transport.set(reg::STATUS, 0);
    assert!(!transport.broken());
}

#[test]
fn configuration_is_written_by_a_known_driver_only() {
    let (transport, told) = fake();
    transport.write(reg::CONFIG, &[1]);
    assert_eq!(told.lock().unwrap().config_writes, 0);
    transport.add_status(status::ACKNOWLEDGE | status::DRIVER);
    transport.write(reg::CONFIG, &[1]);
    assert_eq!(told.lock().unwrap().config_writes, 1);
}

#[test]
fn a_bell_makes_the_thread_serve_and_interrupt() {
    let memory = allocate(1).unwrap();
    let sink = Arc::new(Mutex::new(Vec::new()));
    let console = Box::new(Console::new(sink.clone()));
    let transport = Arc::new(Transport::new(console, memory.clone()).unwrap());
    let thread = start(transport.clone()).unwrap();
    assert!(transport.negotiate(FEATURE_VERSION_1));
    transport.set_queue(1, 8, 0x1000, 0x2000, 0x3000);
    transport.add_status(status::DRIVER_OK);
    memory.write_slice(b"hello", GuestAddress(0x4000)).unwrap();
    // One descriptor: address, length, no flags; in the available ring's slot 0.
    memory.write_obj(0x4000u64, GuestAddress(0x1000)).unwrap();
    memory.write_obj(5u32, GuestAddress(0x1008)).unwrap();
    memory.write_obj(1u16, GuestAddress(0x2002)).unwrap();
    transport.set(reg::QUEUE_NOTIFY, 1);
    while transport.get(reg::INTERRUPT_STATUS) != interrupt::USED_BUFFER {
        std::thread::yield_now();
    }
    assert_eq!(*sink.lock().unwrap(), b"hello");
    assert_eq!(memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 1);
    assert_eq!(transport.interrupt_line().read().unwrap(), 1);
    transport.stop();
    thread.join().unwrap();
}

proptest! {
    #[test]
    fn hostile_register_accesses_never_panic(
        writes in proptest::collection::vec((0u64..0x200, any::<u32>(), 0usize..9), 1..80),
    ) {
        let (transport, _) = fake();
        for (offset, value, width) in writes {
            let value = if offset & 1 == 0 { value } else { value & 0xff };
            if offset & 2 == 0 {
                transport.set(offset & !3, value);
            } else {
                let data = [value.to_le_bytes(), value.to_be_bytes()].concat();
                transport.write(offset, &data[..width]);
                transport.read(offset, &mut vec![0; width]);
            }
            transport.serve(&[Event::Bell(0), Event::Host]);
        }
    }
}
