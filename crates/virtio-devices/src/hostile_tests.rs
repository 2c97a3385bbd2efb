//! Every device against drivers that write anything at all into their rings.
//!
//! What is asserted: no call panics, every call ends after a bounded number of
//! chains, the device comes to rest, and it never writes where no descriptor
//! allows it (a guard region stays as it was).
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

use crate::net::Tap;
use crate::testing::{Buffer, Harness, INDIRECT, NEXT, WRITE};
use crate::vsock::Vsock;
use crate::{
    Console, DeviceError, DiskBay, Fs, FsLimits, IoLimits, Net, NetSettings, Rate, Rng, VirtQueue,
    VirtioDevice,
};
use proptest::prelude::*;
use std::io::Write;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Entries in each ring.
const SIZE: u16 = 16;
const MEMORY_MIB: usize = 7;
const END: u64 = (MEMORY_MIB as u64) << 20;
/// Where descriptors point to, with contents that look like requests; behind the
/// rings of five queues, the most that a device here has.
const DATA: u64 = 6 << 20;
const DATA_LEN: u64 = 64 << 10;
/// Where an indirect table lies.
const TABLE: u64 = DATA + DATA_LEN;
/// No descriptor points here.
const GUARD: u64 = DATA + (128 << 10);
const GUARD_LEN: usize = 64 << 10;
/// The most chains that any device answers in one call.
const MOST_PER_CALL: u16 = 1024;
/// Calls after which a device with nothing new has come to rest.
const MOST_CALLS: usize = 200;

type AnyDevice = Box<dyn VirtioDevice>;

impl VirtioDevice for AnyDevice {
    fn name(&self) -> &'static str {
        self.as_ref().name()
    }
    fn device_type(&self) -> u32 {
        self.as_ref().device_type()
    }
    fn features(&self) -> u64 {
        self.as_ref().features()
    }
    fn queue_sizes(&self) -> &[u16] {
        self.as_ref().queue_sizes()
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.as_ref().read_config(offset, data);
    }
    fn activate(&mut self, features: u64) {
        self.as_mut().activate(features);
    }
    fn reset(&mut self) {
        self.as_mut().reset();
    }
    fn queue_event(
        &mut self,
        index: u16,
        memory: &GuestMemoryMmap,
        queues: &mut crate::Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.as_mut().queue_event(index, memory, queues)
    }
    fn host_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.as_ref().host_fd()
    }
    fn host_event(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut crate::Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.as_mut().host_event(memory, queues)
    }
}

/// One of each device, with something behind it.
fn devices(dir: &TempDir) -> Vec<AnyDevice> {
    let (read_only, images) = DiskBay::new("images", "ro", true);
    let (writable, scratch) = DiskBay::new("scratch", "rw", false);
    let (volumes, limited) = DiskBay::for_volumes("volumes", "");
    for bay in [&images, &scratch, &limited] {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[0x5a; 64 << 10]).expect("write");
        bay.attach("disk", file).expect("attach");
    }
    // A few requests wait while it is attacked.
    let few = Rate {
        per_second: NonZeroU64::MIN,
        burst: NonZeroU64::MIN,
    };
    let limits = IoLimits {
        operations: Some(few),
        bytes: None,
    };
    limited.limit("disk", limits).expect("a timer");
    let sink: Arc<Mutex<dyn Write + Send>> = Arc::new(Mutex::new(std::io::sink()));
    let limits = FsLimits {
        nodes: 100,
        handles: 100,
    };
    let (shares, _) = Fs::new("shares", limits).expect("a device");
    vec![
        Box::new(shares),
        Box::new(read_only),
        Box::new(writable),
        Box::new(volumes),
        Box::new(Vsock::new(3, dir.path().join("vsock")).expect("a device")),
        Box::new(Rng::new().expect("a device")),
        Box::new(Console::new(sink)),
        Box::new(net(1)),
        Box::new(net(2)),
    ]
}

/// A network device with a frame for its guest; nobody takes the guest's.
fn net(pairs: usize) -> Net {
    let settings = NetSettings {
        name: "net",
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        anti_spoof: false,
    };
    let taps = (0..pairs).map(|_| Tap::with_frames(3)).collect();
    Net::with_taps(settings, taps).expect("a device").0
}

/// A descriptor with a taste for borders.
#[derive(Clone, Debug)]
struct Hostile {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => DATA..DATA + DATA_LEN,
        4 => (0..64u64).prop_map(|slot| DATA + 64 * slot),
        1 => Just(0),
        // The rings themselves.
        2 => 4096..4096 + 2048u64,
        1 => END - 64..END + 64,
        1 => Just(u64::MAX),
        1 => u64::MAX - 4096..=u64::MAX,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(0),
        2 => Just(1),
        4 => Just(16),
        4 => Just(44),
        2 => Just(511),
        4 => Just(512),
        2 => Just(4096),
        2 => 0..70_000u32,
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Hostile> {
    let flags = prop_oneof![
        4 => Just(0u16),
        6 => Just(NEXT),
        4 => Just(WRITE),
        6 => Just(WRITE | NEXT),
        2 => Just(INDIRECT),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![
        9 => 0..SIZE,
        1 => any::<u16>(),
    ];
    let table = (0..2 * SIZE, 0..40u32);
    (address(), length(), flags, next, table).prop_map(|(addr, len, flags, next, table)| {
        if flags == INDIRECT {
            return Hostile {
                addr: TABLE + 16 * u64::from(table.0),
                len: 16 * table.1,
                flags,
                next,
            };
        }
        Hostile {
            // Only a descriptor that points into the guard may change it.
            addr: if addr < GUARD + GUARD_LEN as u64 && addr.saturating_add(len.into()) > GUARD {
                DATA
            } else {
                addr
            },
            len,
            flags,
            next,
        }
    })
}

/// A header that a device takes seriously: of a block request or of a packet.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let block = (
        prop_oneof![0..16u32, any::<u32>()],
        prop_oneof![0..200u64, any::<u64>()],
    )
        .prop_map(|(kind, sector)| {
            let mut bytes = kind.to_le_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend(sector.to_le_bytes());
            bytes
        });
    let packet = (
        prop_oneof![4 => Just(3u64), 1 => any::<u64>()],
        prop::array::uniform3(0..3u32),
        prop_oneof![4 => 0..600u32, 1 => any::<u32>()],
        prop_oneof![8 => Just(1u16), 1 => any::<u16>()],
        0..10u16,
        any::<[u32; 3]>(),
    )
        .prop_map(|(cid, ports, len, kind, op, rest)| {
            let mut bytes = cid.to_le_bytes().to_vec();
            bytes.extend(2u64.to_le_bytes());
            bytes.extend(ports[0].to_le_bytes());
            bytes.extend(ports[1].to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(op.to_le_bytes());
            bytes.extend(rest.iter().flat_map(|word| word.to_le_bytes()));
            bytes
        });
    prop_oneof![block, packet, prop::collection::vec(any::<u8>(), 64..65)]
}

/// Fills the data region with requests, one in each 64 bytes, and the guard.
fn prepare(harness: &Harness<AnyDevice>, requests: &[Vec<u8>]) {
    for slot in 0..DATA_LEN / 64 {
        let request = &requests[slot as usize % requests.len()];
        let len = request.len().min(64);
        harness
            .memory
            .write_slice(&request[..len], GuestAddress(DATA + 64 * slot))
            .expect("in memory");
    }
    harness
        .memory
        .write_slice(&[0xa5; GUARD_LEN], GuestAddress(GUARD))
        .expect("in memory");
}

/// Calls the device for every queue until it rests or gives up.
fn exercise(harness: &mut Harness<AnyDevice>) -> Result<(), TestCaseError> {
    let used = |harness: &mut Harness<AnyDevice>| -> u16 {
        harness
            .queues
            .iter_mut()
            .map(|queue| queue.queue().next_used())
            .fold(0, u16::wrapping_add)
    };
    for index in 0..harness.rings.len() as u16 {
        let before = used(harness);
        if harness.kick(index).is_err() {
            // The transport would stop it now; a reset makes it whole again.
            harness.device.reset();
        }
        prop_assert!(used(harness).wrapping_sub(before) <= MOST_PER_CALL);
        let mut calls = 0;
        loop {
            let before = used(harness);
            match harness.poll_host(Duration::ZERO) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => harness.device.reset(),
            }
            prop_assert!(used(harness).wrapping_sub(before) <= MOST_PER_CALL);
            calls += 1;
            prop_assert!(calls < MOST_CALLS, "the device does not come to rest");
        }
    }
    Ok(())
}

fn check_guard(harness: &Harness<AnyDevice>) -> Result<(), TestCaseError> {
    let guard = harness.load(GUARD, GUARD_LEN);
    prop_assert!(guard.iter().all(|&byte| byte == 0xa5), "wrote at will");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn survives_hostile_chains(
        table in prop::collection::vec(descriptor(), SIZE as usize),
        heads in prop::collection::vec(prop_oneof![9 => 0..SIZE, 1 => any::<u16>()], 1..20),
        jump in prop_oneof![6 => Just(0u16), 1 => any::<u16>()],
        requests in prop::collection::vec(request(), 1..8),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        for device in devices(&dir) {
            let mut harness = Harness::new(device, SIZE, MEMORY_MIB);
            prepare(&harness, &requests);
            for ring in &mut harness.rings {
                for (index, entry) in table.iter().enumerate() {
                    ring.write_descriptor(
                        index as u16, entry.addr, entry.len, entry.flags, entry.next,
                    );
                }
                // The same where descriptors look for an indirect table.
                for (index, entry) in table.iter().enumerate() {
                    let raw = [
                        &entry.addr.to_le_bytes()[..],
                        &entry.len.to_le_bytes(),
                        &entry.flags.to_le_bytes(),
                        &entry.next.to_le_bytes(),
                    ].concat();
                    let at = GuestAddress(TABLE + 16 * index as u64);
                    harness.memory.write_slice(&raw, at).expect("in memory");
                }
                for &head in &heads {
                    ring.offer(head);
                }
                if jump != 0 {
                    ring.set_available_index(jump);
                }
            }
            exercise(&mut harness)?;
            check_guard(&harness)?;
        }
    }

    #[test]
    fn survives_random_rings(bytes in prop::collection::vec(any::<u8>(), 1024), sizes in any::<u64>()) {
        let dir = tempfile::tempdir().expect("a directory");
        for device in devices(&dir) {
            let mut harness = Harness::new(device, SIZE, MEMORY_MIB);
            prepare(&harness, std::slice::from_ref(&bytes));
            let memory = harness.memory.clone();
            for ring in &mut harness.rings {
                memory.write_slice(&bytes[..256], GuestAddress(ring.descriptors)).expect("in memory");
                memory.write_slice(&bytes[256..512], GuestAddress(ring.available)).expect("in memory");
                memory.write_slice(&bytes[512..768], GuestAddress(ring.used)).expect("in memory");
                ring.set_available_index((sizes % 18) as u16);
            }
            for (index, queue) in harness.queues.iter_mut().enumerate() {
                // Rings that lie, or end, outside of memory; any size.
                let queue = queue.queue();
                queue.set_size(1 << (sizes >> (8 + index) & 3));
                match sizes >> (16 + 4 * index) & 15 {
                    0 => queue.set_avail_ring_address(Some((END - 8) as u32), None),
                    1 => queue.set_used_ring_address(Some((END - 8) as u32), None),
                    2 => queue.set_desc_table_address(Some((END - 16) as u32), None),
                    3 => queue.set_used_ring_address(Some(u32::MAX - 3), Some(u32::MAX)),
                    4 => queue.set_ready(false),
                    _ => {}
                }
            }
            // Random addresses may name the guard: it is not checked here.
            exercise(&mut harness)?;
        }
    }

    /// Chains that keep the queue protocol, whatever requests they hold, are
    /// all answered.
    #[test]
    fn answers_every_well_formed_chain(
        chains in prop::collection::vec(
            (prop::collection::vec((0..1000u64, 0..1200u32), 0..4),
             prop::collection::vec((0..1000u64, 0..1200u32), 0..4)),
            1..8,
        ),
        requests in prop::collection::vec(request(), 1..8),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        for device in devices(&dir) {
            let mut harness = Harness::new(device, 64, MEMORY_MIB);
            prepare(&harness, &requests);
            // The device reads on the last queue that it serves; where it
            // writes only, it ignores the rest.
            let index = match harness.device.name() {
                "console" | "vsock" | "net" => 1,
                _ => 0,
            };
            let mut offered = 0;
            for (readable, writable) in &chains {
                let place = |&(slot, len): &(u64, u32), writable| Buffer {
                    addr: DATA + 64 * slot,
                    len,
                    writable,
                };
                let buffers: Vec<_> = readable
                    .iter()
                    .map(|buffer| place(buffer, false))
                    .chain(writable.iter().map(|buffer| place(buffer, true)))
                    .collect();
                offered += usize::from(harness.rings[index].push(&buffers).is_some());
            }
            harness.run(index as u16).expect("nothing wrong with the queue");
            let mut answered = 0;
            while let Some((_, used)) = harness.rings[index].pop_used() {
                prop_assert!(used <= 4 * 1200);
                answered += 1;
            }
            prop_assert_eq!(answered, offered);
            check_guard(&harness)?;
        }
    }

    #[test]
    fn configuration_reads_and_writes_stay_inside(offset in prop_oneof![0..100u64, any::<u64>()], len in 0..100usize) {
        let dir = tempfile::tempdir().expect("a directory");
        for mut device in devices(&dir) {
            let mut data = vec![0xff; len];
            device.read_config(offset, &mut data);
            device.write_config(offset, &data);
            if offset >= 64 {
                prop_assert!(data.iter().all(|&byte| byte == 0));
            }
        }
    }
}

/// A driver that makes chains available as fast as the device answers them
/// must not keep it in one call for ever.
#[test]
fn a_driver_that_never_pauses_gets_no_endless_call() {
    let dir = tempfile::tempdir().expect("a directory");
    for device in devices(&dir) {
        let mut harness = Harness::new(device, SIZE, MEMORY_MIB);
        let stop = AtomicBool::new(false);
        let last = harness.rings.len() - 1;
        for ring in &mut harness.rings {
            for index in 0..SIZE {
                let flags = if index % 2 == 0 { NEXT } else { WRITE };
                ring.write_descriptor(index, DATA, 512, flags, index + 1);
                ring.offer(index & !1);
            }
        }
        let memory = harness.memory.clone();
        let addresses: Vec<_> = harness
            .rings
            .iter()
            .map(|ring| (ring.used, ring.available))
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    for &(used, available) in &addresses {
                        let done: u16 = memory
                            .load(GuestAddress(used + 2), Ordering::Acquire)
                            .expect("in memory");
                        memory
                            .store(
                                done.wrapping_add(SIZE),
                                GuestAddress(available + 2),
                                Ordering::Release,
                            )
                            .expect("in memory");
                    }
                }
            });
            for _ in 0..20 {
                for index in 0..=last {
                    // Errors are as good as success: it came back.
                    let _ = harness.kick(index as u16);
                    let _ = harness.poll_host(Duration::ZERO);
                }
            }
            stop.store(true, Ordering::Release);
        });
    }
}

/// Descriptors and requests change under the device's eyes.
#[test]
fn survives_a_driver_that_changes_everything_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    for device in devices(&dir) {
        let mut harness = Harness::new(device, SIZE, MEMORY_MIB);
        let stop = AtomicBool::new(false);
        let memory = harness.memory.clone();
        let tables: Vec<_> = harness.rings.iter().map(|ring| ring.descriptors).collect();
        let round = AtomicU16::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = 0x2545_f491_4f6c_dd1d_u64;
                let mut random = move || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state
                };
                while !stop.load(Ordering::Acquire) {
                    let at = random() % u64::from(SIZE) * 16;
                    for &table in &tables {
                        let addr = if random() % 8 == 0 {
                            random()
                        } else {
                            DATA + random() % DATA_LEN
                        };
                        memory
                            .write_obj(addr, GuestAddress(table + at))
                            .expect("in memory");
                        // Length, flags and next in one word.
                        let word = random() & 0xfff
                            | (random() & 7) << 32
                            | (random() % u64::from(SIZE)) << 48;
                        memory
                            .write_obj(word, GuestAddress(table + at + 8))
                            .expect("in memory");
                    }
                    memory
                        .write_obj(random() % 20, GuestAddress(DATA + random() % DATA_LEN))
                        .expect("in memory");
                    round.fetch_add(1, Ordering::Relaxed);
                }
            });
            for _ in 0..2000 {
                for index in 0..harness.rings.len() {
                    harness.rings[index].offer(round.load(Ordering::Relaxed) % SIZE);
                    if harness.kick(index as u16).is_err() {
                        harness.device.reset();
                    }
                    while harness.rings[index].pop_used().is_some() {}
                }
                let _ = harness.poll_host(Duration::ZERO);
            }
            stop.store(true, Ordering::Release);
        });
    }
}
