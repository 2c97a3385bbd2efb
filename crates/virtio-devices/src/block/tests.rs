//! The disk bay against host files, through its queue.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

mod volumes;

use super::*;
use crate::testing::{Buffer, Harness};
use crate::{DeviceError, VirtioDevice};
use proptest::prelude::*;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const MIB: u64 = 1 << 20;

/// A bay with its driver.
struct Disk {
    harness: Harness<DiskBay>,
    bay: BayHandle,
}

impl Disk {
    fn new(read_only: bool) -> Disk {
        let (device, bay) = DiskBay::new("disk", "serial", read_only);
        Disk {
            harness: Harness::new(device, 64, 8),
            bay,
        }
    }

    /// One request with `sent` after the header and `room` bytes for an answer;
    /// status, used length and answer.
    fn request(&mut self, kind: u32, sector: u64, sent: &[u8], room: u32) -> (u8, u32, Vec<u8>) {
        let harness = &mut self.harness;
        let base = 4 * MIB;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let write = |bytes: &[u8], at| {
            harness
                .memory
                .write_slice(bytes, GuestAddress(at))
                .expect("in memory");
        };
        write(&header, base);
        write(sent, base + 4096);
        write(&[0xff], base + 16);
        let answer = base + 2 * MIB;
        let mut buffers = vec![Buffer::readable(base, 16)];
        if !sent.is_empty() {
            // In two pieces of odd sizes, as scattered pages would be.
            let cut = sent.len() / 3;
            for (at, len) in [(0, cut), (cut, sent.len() - cut)] {
                if len > 0 {
                    let len = u32::try_from(len).expect("small");
                    buffers.push(Buffer::readable(base + 4096 + at as u64, len));
                }
            }
        }
        if room > 0 {
            buffers.push(Buffer::writable(answer, room));
        }
        buffers.push(Buffer::writable(base + 16, 1));
        harness.rings[0].push(&buffers).expect("room in the ring");
        harness.run(0).expect("the device works");
        let (_, used) = harness.rings[0].pop_used().expect("an answer");
        let status = harness.load(base + 16, 1)[0];
        (status, used, harness.load(answer, room as usize))
    }

    fn read(&mut self, offset: u64, len: u32) -> (u8, Vec<u8>) {
        let (status, _, data) = self.request(VIRTIO_BLK_T_IN, offset / 512, &[], len);
        (status, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> u8 {
        self.request(VIRTIO_BLK_T_OUT, offset / 512, data, 0).0
    }

    fn range(&mut self, kind: u32, offset: u64, length: u64, flags: u32) -> u8 {
        let mut range = (offset / 512).to_le_bytes().to_vec();
        let sectors = u32::try_from(length / 512).expect("small");
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.request(kind, 0, &range, 0).0
    }
}

/// A temporary file with these bytes, open for both.
fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("write");
    file
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

fn contents(file: &File) -> Vec<u8> {
    let mut file = file.try_clone().expect("clone");
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    bytes
}

#[test]
fn reads_what_the_file_holds() {
    let bytes = pattern(3 * 4096);
    let mut disk = Disk::new(true);
    let extent = disk.bay.attach("image", file_with(&bytes)).expect("attach");
    assert_eq!((extent.offset, extent.length), (0, 3 * 4096));
    let (status, used, data) = disk.request(VIRTIO_BLK_T_IN, 1, &[], 8192);
    assert_eq!((status, used), (OK, 8193));
    assert_eq!(data, bytes[512..512 + 8192]);
}

#[test]
fn reads_zeroes_between_the_end_of_the_file_and_of_the_extent() {
    let bytes = pattern(5000);
    let mut disk = Disk::new(true);
    let extent = disk.bay.attach("image", file_with(&bytes)).expect("attach");
    assert_eq!(extent.length, 8192);
    let (status, data) = disk.read(4096, 4096);
    assert_eq!(status, OK);
    assert_eq!(data[..904], bytes[4096..]);
    assert_eq!(data[904..], [0; 4096 - 904]);
    let (status, data) = disk.read(5120, 512);
    assert_eq!((status, data), (OK, vec![0; 512]));
}

#[test]
fn a_file_that_shrank_is_an_error() {
    let file = file_with(&pattern(8192));
    let mut disk = Disk::new(true);
    disk.bay
        .attach("image", file.try_clone().expect("clone"))
        .expect("attach");
    file.set_len(4096).expect("truncate");
    assert_eq!(disk.read(0, 4096).0, OK);
    assert_eq!(disk.read(4096, 4096).0, IOERR);
}

#[test]
fn addresses_without_a_file_are_errors() {
    let mut disk = Disk::new(true);
    assert_eq!(disk.read(0, 512).0, IOERR);
    disk.bay
        .attach("a", file_with(&pattern(4096)))
        .expect("attach");
    disk.bay
        .attach("b", file_with(&pattern(4096)))
        .expect("attach");
    assert_eq!(disk.read(MIB, 4096).0, OK);
    assert_eq!(disk.read(0, 8192).0, IOERR, "past the end of an extent");
    assert_eq!(disk.read(4096, 512).0, IOERR, "between two extents");
    let (status, _, _) = disk.request(VIRTIO_BLK_T_IN, u64::MAX, &[], 512);
    assert_eq!(status, IOERR, "an offset beyond 64 bits");
}

#[test]
fn writes_reach_the_file_and_a_read_only_bay_refuses_them() {
    let file = file_with(&pattern(8192));
    let mut disk = Disk::new(false);
    disk.bay
        .attach("scratch", file.try_clone().expect("clone"))
        .expect("attach");
    let data: Vec<u8> = pattern(4096).into_iter().rev().collect();
    assert_eq!(disk.write(512, &data), OK);
    assert_eq!(contents(&file)[512..512 + 4096], data);
    assert_eq!(disk.read(512, 4096), (OK, data));

    let file = file_with(&pattern(8192));
    let mut disk = Disk::new(true);
    disk.bay
        .attach("image", file.try_clone().expect("clone"))
        .expect("attach");
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, 0, 4096, 0), IOERR);
    assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 4096, 0), IOERR);
    assert_eq!(contents(&file), pattern(8192));
}

#[test]
fn a_read_only_bay_offers_nothing_that_writes() {
    let (bay, _) = DiskBay::new("disk", "", true);
    assert_ne!(bay.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(bay.features() & 1 << VIRTIO_BLK_F_FLUSH, 0);
    let (bay, _) = DiskBay::new("disk", "", false);
    assert_eq!(bay.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_ne!(bay.features() & 1 << VIRTIO_BLK_F_FLUSH, 0);
}

#[test]
fn malformed_requests_are_answered() {
    let mut disk = Disk::new(false);
    disk.bay
        .attach("scratch", file_with(&pattern(8192)))
        .expect("attach");
    let (status, used, _) = disk.request(VIRTIO_BLK_T_IN, 0, &[], 100);
    assert_eq!((status, used), (IOERR, 0), "no whole sectors");
    assert_eq!(disk.request(VIRTIO_BLK_T_IN, 0, &[], 0).0, IOERR, "no data");
    assert_eq!(disk.write(0, &[1; 511]), IOERR);
    assert_eq!(disk.request(77, 0, &[], 512).0, UNSUPP, "unknown type");
    assert_eq!(
        disk.request(VIRTIO_BLK_T_DISCARD, 0, &[0; 15], 0).0,
        IOERR,
        "half a range"
    );
    let many = vec![0; 16 * 17];
    assert_eq!(
        disk.request(VIRTIO_BLK_T_DISCARD, 0, &many, 0).0,
        IOERR,
        "too many ranges"
    );
}

#[test]
fn a_request_without_a_status_byte_is_dropped() {
    let mut disk = Disk::new(false);
    let header = disk.harness.store(&[0; 16]);
    disk.harness.rings[0]
        .push(&[Buffer::readable(header, 16)])
        .expect("room");
    disk.harness.run(0).expect("the device works");
    let (_, used) = disk.harness.rings[0].pop_used().expect("an answer");
    assert_eq!(used, 0);
}

#[test]
fn the_serial_is_padded_and_cut() {
    let mut disk = Disk::new(true);
    let (status, used, data) = disk.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!((status, used), (OK, 21));
    assert_eq!(&data, b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    let (device, _) = DiskBay::new("disk", "a serial of more than twenty bytes", true);
    let mut disk = Disk {
        harness: Harness::new(device, 64, 8),
        ..disk
    };
    let (_, _, data) = disk.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!(&data, b"a serial of more tha");
}

#[test]
fn discard_frees_blocks_and_reads_zeroes() {
    let file = file_with(&pattern(64 * 4096));
    file.sync_all().expect("sync");
    let before = file.metadata().expect("stat").blocks();
    let mut disk = Disk::new(false);
    disk.bay
        .attach("scratch", file.try_clone().expect("clone"))
        .expect("attach");
    assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, 4096, 32 * 4096, 0), OK);
    assert_eq!(disk.read(4096, 4096), (OK, vec![0; 4096]));
    assert_eq!(contents(&file)[..4096], pattern(4096));
    assert_eq!(file.metadata().expect("stat").len(), 64 * 4096);
    assert!(file.metadata().expect("stat").blocks() < before);
    assert_eq!(
        disk.range(VIRTIO_BLK_T_DISCARD, 0, 4096, 1),
        UNSUPP,
        "the unmap flag is write-zeroes' only"
    );
    assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, 0, 65 * 4096, 0), IOERR);
}

#[test]
fn write_zeroes_zeroes_with_and_without_unmap() {
    for flags in [0, 1] {
        let file = file_with(&pattern(16 * 4096));
        let mut disk = Disk::new(false);
        disk.bay
            .attach("scratch", file.try_clone().expect("clone"))
            .expect("attach");
        assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, 512, 8192, flags), OK);
        let mut expected = pattern(16 * 4096);
        expected[512..512 + 8192].fill(0);
        assert_eq!(contents(&file), expected);
        assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 4096, 2), UNSUPP);
        assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 65 * MIB, 0), IOERR);
    }
}

#[test]
fn a_flush_cleans_what_was_written() {
    let mut disk = Disk::new(false);
    disk.bay
        .attach("a", file_with(&pattern(4096)))
        .expect("attach");
    disk.bay
        .attach("b", file_with(&pattern(4096)))
        .expect("attach");
    assert_eq!(disk.write(MIB, &[7; 512]), OK);
    assert_eq!(disk.bay.bay.dirty().len(), 1);
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
    assert!(disk.bay.bay.dirty().is_empty());
}

#[test]
fn without_flush_every_write_is_brought_to_storage() {
    let (device, bay) = DiskBay::new("disk", "serial", false);
    let features = device.features() & !(1 << VIRTIO_BLK_F_FLUSH);
    let mut disk = Disk {
        harness: Harness::with_features(device, 64, 8, features),
        bay,
    };
    disk.bay
        .attach("a", file_with(&pattern(4096)))
        .expect("attach");
    assert_eq!(disk.write(0, &[7; 512]), OK);
    assert!(disk.bay.bay.dirty().is_empty());
}

#[test]
fn a_failing_flush_is_reported_and_never_a_success_again() {
    // /dev/full's pages cannot be had as a bay's file; a pipe cannot be synced,
    // which is what a failing disk looks like here.
    let backing = super::bay::Backing::for_test({
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        File::from(std::os::fd::OwnedFd::from(reader))
    });
    backing.mark_dirty();
    assert!(backing.flush().is_err());
    assert!(backing.flush().is_err(), "what was lost stays lost");
    backing.mark_dirty();
    assert!(backing.flush().is_err());
}

#[test]
fn attach_refuses_what_is_no_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk");
    std::fs::write(&path, [1; 4096]).expect("write");
    let (_device, writable) = DiskBay::new("disk", "", false);
    let (_device, read_only) = DiskBay::new("disk", "", true);

    let for_reading = || File::open(&path).expect("open");
    assert!(matches!(
        writable.attach("a", for_reading()),
        Err(BayError::NotWritable(_))
    ));
    read_only.attach("a", for_reading()).expect("attach");
    assert!(matches!(
        read_only.attach("a", for_reading()),
        Err(BayError::NameTaken(_))
    ));
    let for_writing = OpenOptions::new().write(true).open(&path).expect("open");
    assert!(matches!(
        read_only.attach("b", for_writing),
        Err(BayError::NotReadable(_))
    ));
    let directory = File::open(dir.path()).expect("open");
    assert!(matches!(
        read_only.attach("b", directory),
        Err(BayError::NotADisk(_))
    ));
    let null = File::open("/dev/null").expect("open");
    assert!(matches!(
        read_only.attach("b", null),
        Err(BayError::NotADisk(_))
    ));
    assert!(matches!(
        read_only.attach("b", file_with(&[])),
        Err(BayError::Empty(_))
    ));
    assert!(matches!(
        read_only.detach("b"),
        Err(BayError::NoSuchExtent(_))
    ));
}

#[test]
fn a_full_bay_says_so() {
    let sparse = || {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(9 << 40).expect("a sparse file");
        file
    };
    let (_device, bay) = DiskBay::new("disk", "", true);
    bay.attach("first", sparse()).expect("attach");
    assert!(matches!(
        bay.attach("second", sparse()),
        Err(BayError::Full { .. })
    ));
}

#[test]
fn detached_addresses_are_errors_and_go_to_the_next_file() {
    let mut disk = Disk::new(true);
    disk.bay.attach("a", file_with(&[1; 4096])).expect("attach");
    let kept = disk.bay.attach("b", file_with(&[2; 4096])).expect("attach");
    disk.bay.detach("a").expect("detach");
    assert_eq!(disk.read(0, 4096).0, IOERR);
    assert_eq!(
        disk.bay.extents(),
        [NamedExtent {
            name: "b".to_owned(),
            extent: kept,
            read_only: true,
        }]
    );
    let extent = disk.bay.attach("c", file_with(&[3; 4096])).expect("attach");
    assert_eq!(extent.offset, 0);
    assert_eq!(disk.read(0, 4096), (OK, vec![3; 4096]));
}

#[test]
fn files_come_and_go_while_the_guest_reads() {
    let mut disk = Disk::new(true);
    let bay = disk.bay.clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2000u32 {
                let byte = (round % 250 + 1) as u8;
                bay.attach("disk", file_with(&[byte; 8192]))
                    .expect("attach");
                bay.detach("disk").expect("detach");
            }
            stop.store(true, Ordering::Release);
        });
        let (mut hits, mut misses) = (0, 0);
        while !stop.load(Ordering::Acquire) {
            let (status, data) = disk.read(0, 8192);
            if status == OK {
                hits += 1;
                assert!(data.iter().all(|&byte| byte == data[0] && byte != 0));
            } else {
                misses += 1;
                assert_eq!(status, IOERR);
            }
        }
        assert!(hits + misses > 0);
    });
    assert_eq!(disk.read(0, 512).0, IOERR);
}

#[test]
fn a_long_queue_is_done_in_turns_and_nothing_is_forgotten() {
    let (device, bay) = DiskBay::new("disk", "", true);
    bay.attach("a", file_with(&pattern(4096))).expect("attach");
    let mut harness = Harness::new(device, 1024, 8);
    let header = harness.store(&[0; 16]);
    let answer = harness.allocate(513);
    for _ in 0..512 {
        harness.rings[0]
            .push(&[Buffer::readable(header, 16), Buffer::writable(answer, 513)])
            .expect("room");
    }
    harness.kick(0).expect("the device works");
    let mut done = 0;
    while harness.rings[0].pop_used().is_some() {
        done += 1;
    }
    assert_eq!(done, crate::serve::MAX_CHAINS_PER_TURN);
    // No bell any more: the device has to call itself.
    while harness
        .poll_host(std::time::Duration::ZERO)
        .expect("the device works")
    {}
    while harness.rings[0].pop_used().is_some() {
        done += 1;
    }
    assert_eq!(done, 512);
}

#[test]
fn a_loop_of_descriptors_ends_the_device() {
    let mut disk = Disk::new(true);
    let ring = &mut disk.harness.rings[0];
    ring.write_descriptor(0, 0, 16, crate::testing::NEXT, 0);
    ring.offer(0);
    assert!(matches!(
        disk.harness.kick(0),
        Err(DeviceError::Queue { queue: 0, .. })
    ));
}

#[test]
fn the_configuration_can_be_read_byte_by_byte() {
    let (device, _) = DiskBay::new("disk", "", false);
    let mut whole = [0xff; 80];
    device.read_config(0, &mut whole);
    assert_eq!(whole[..8], (16u64 << 31).to_le_bytes());
    assert_eq!(whole[20..24], 512u32.to_le_bytes());
    assert_eq!(whole[60..], [0; 20]);
    for (at, &byte) in whole.iter().enumerate() {
        let mut one = [0xff];
        device.read_config(at as u64, &mut one);
        assert_eq!(one[0], byte);
    }
    let mut far = [0xff; 8];
    device.read_config(u64::MAX, &mut far);
    assert_eq!(far, [0; 8]);
}

/// What a driver does to a disk in the model test; in sectors of 16.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..130u64, 1..40u64);
    prop_oneof![
        range().prop_map(|(at, len)| Step::Read(at, len)),
        (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        (range(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        range().prop_map(|(at, len)| Step::Discard(at, len)),
        Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_as_a_vector_of_bytes(steps in prop::collection::vec(step(), 1..60)) {
        const SECTORS: u64 = 128;
        let mut model = pattern((SECTORS * 512) as usize);
        let file = file_with(&model);
        let mut disk = Disk::new(false);
        disk.bay.attach("disk", file.try_clone().expect("clone")).expect("attach");
        for step in steps {
            let (at, len) = match step {
                Step::Read(at, len) | Step::Write(at, len, _) | Step::Zero(at, len, _)
                    | Step::Discard(at, len) => (at, len),
                Step::Flush => (0, 1),
            };
            let expected = if at + len <= SECTORS { OK } else { IOERR };
            let bytes = (at * 512) as usize..((at + len) * 512) as usize;
            let inside = model.get_mut(bytes.clone());
            match step {
                Step::Read(..) => {
                    let (status, data) = disk.read(at * 512, (len * 512) as u32);
                    prop_assert_eq!(status, expected);
                    if let Some(inside) = inside {
                        prop_assert_eq!(data, &*inside);
                    }
                }
                Step::Write(_, _, byte) => {
                    let mut data = pattern(bytes.len());
                    data[0] = byte;
                    prop_assert_eq!(disk.write(at * 512, &data), expected);
                    if let Some(inside) = inside {
                        inside.copy_from_slice(&data);
                    }
                }
                Step::Zero(_, _, unmap) => {
                    let kind = VIRTIO_BLK_T_WRITE_ZEROES;
                    prop_assert_eq!(disk.range(kind, at * 512, len * 512, unmap.into()), expected);
                    if let Some(inside) = inside {
                        inside.fill(0);
                    }
                }
                Step::Discard(..) => {
                    let kind = VIRTIO_BLK_T_DISCARD;
                    prop_assert_eq!(disk.range(kind, at * 512, len * 512, 0), expected);
                    if let Some(inside) = inside {
                        inside.fill(0);
                    }
                }
                Step::Flush => {
                    prop_assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
                }
            }
        }
        let mut found = vec![0; model.len()];
        file.read_exact_at(&mut found, 0).expect("read");
        prop_assert_eq!(found, model);
    }
}
