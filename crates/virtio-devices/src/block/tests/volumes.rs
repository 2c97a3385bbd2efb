//! Extents that last: their sizes, rights, borders and limits.

use super::*;
use std::num::NonZeroU64;
use std::time::Duration;

fn volume(read_only: bool) -> VolumeOptions {
    VolumeOptions {
        read_only,
        ..VolumeOptions::default()
    }
}

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate {
        per_second: NonZeroU64::new(per_second).expect("not zero"),
        burst: NonZeroU64::new(burst).expect("not zero"),
    })
}

fn operations(per_second: u64, burst: u64) -> IoLimits {
    IoLimits {
        operations: rate(per_second, burst),
        bytes: None,
    }
}

impl Disk {
    fn of_volumes() -> Disk {
        let (device, bay) = DiskBay::for_volumes("volumes", "own");
        Disk {
            harness: Harness::new(device, 64, 8),
            bay,
        }
    }

    /// Offers a write of a sector, and lets the device look at it.
    fn offer_write(&mut self, offset: u64, byte: u8) -> u16 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&VIRTIO_BLK_T_OUT.to_le_bytes());
        header[8..].copy_from_slice(&(offset / 512).to_le_bytes());
        let header = self.harness.store(&header);
        let data = self.harness.store(&[byte; 512]);
        let status = self.harness.store(&[0xff]);
        let head = self.harness.rings[0]
            .push(&[
                Buffer::readable(header, 16),
                Buffer::readable(data, 512),
                Buffer::writable(status, 1),
            ])
            .expect("room in the ring");
        self.kick();
        head
    }

    fn kick(&mut self) {
        self.harness.kick(0).expect("the device works");
    }

    fn done(&mut self) -> Vec<u16> {
        let ring = &mut self.harness.rings[0];
        std::iter::from_fn(|| ring.pop_used())
            .map(|(head, _)| head)
            .collect()
    }

    fn set_clock(&mut self, seconds: u64) {
        let now = Duration::from_secs(seconds);
        *self.bay.bay.test_clock.lock().expect("the clock") = Some(now);
    }
}

#[test]
fn a_volume_keeps_its_length_and_grows_when_told() {
    let file = file_with(&pattern(8192 + 700));
    let mut disk = Disk::of_volumes();
    let attach = |name: &str| {
        disk.bay
            .attach_volume(name, file.try_clone().expect("clone"), volume(false))
            .expect("attach")
    };
    let (first, second) = (attach("a"), attach("b"));
    assert_eq!((first.offset, first.length), (0, 8192 + 512));
    assert!(second.offset >= 8 << 40, "{second:?}");
    assert_eq!(disk.write(8192, &[7; 512]), OK);
    assert_eq!(disk.write(8192 + 512, &[7; 512]), IOERR);
    assert_eq!(file.metadata().expect("stat").len(), 8192 + 700);

    file.set_len(16384).expect("grow");
    assert_eq!(disk.read(8192 + 512, 512).0, IOERR, "not told yet");
    let grown = disk.bay.resize("a").expect("resize");
    assert_eq!((grown.offset, grown.length), (0, 16384));
    assert_eq!(disk.write(16384 - 512, &[9; 512]), OK);
    assert_eq!(contents(&file)[16384 - 512..], [9; 512]);
    assert_eq!(disk.read(16384, 512).0, IOERR);
    disk.bay.resize("a").expect("as it is");

    file.set_len(4096).expect("shrink");
    assert!(matches!(
        disk.bay.resize("a"),
        Err(BayError::Shrunk { now: 4096, .. })
    ));
    assert_eq!(disk.read(4096, 512).0, IOERR, "lost data is no zeroes");
    assert!(matches!(
        disk.bay.resize("c"),
        Err(BayError::NoSuchExtent(_))
    ));
}

#[test]
fn a_read_only_volume_changes_nothing_beside_a_writable_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk");
    std::fs::write(&path, pattern(8192)).expect("write");
    let mut disk = Disk::of_volumes();
    let fixed = File::open(&path).expect("open");
    let refused = disk
        .bay
        .attach_volume("w", fixed.try_clone().expect("clone"), volume(false));
    assert!(matches!(refused, Err(BayError::NotWritable(_))));
    disk.bay
        .attach_volume("fixed", fixed, volume(true))
        .expect("attach");
    // Of one that is open for writing nothing can be changed either.
    let open = File::options().read(true).write(true).open(&path);
    let other = disk
        .bay
        .attach_volume("also", open.expect("open"), volume(true))
        .expect("attach");
    for at in [0, other.offset] {
        assert_eq!(disk.read(at, 8192), (OK, pattern(8192)));
        assert_eq!(disk.write(at, &[1; 512]), IOERR);
        assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, at, 4096, 0), IOERR);
        assert_eq!(disk.range(VIRTIO_BLK_T_WRITE_ZEROES, at, 4096, 1), IOERR);
    }
    assert_eq!(std::fs::read(&path).expect("read"), pattern(8192));
    let extents = disk.bay.extents();
    assert!(extents.iter().all(|extent| extent.read_only));
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
}

#[test]
fn no_request_crosses_the_border_of_two_files() {
    let (a, b) = (file_with(&[1; 1 << 20]), file_with(&[2; 1 << 20]));
    let mut disk = Disk::new(false);
    for (name, file) in [("a", &a), ("b", &b)] {
        let file = file.try_clone().expect("clone");
        disk.bay.attach(name, file).expect("attach");
    }
    assert_eq!(disk.read(MIB - 512, 1024).0, IOERR);
    assert_eq!(disk.write(MIB - 512, &[9; 1024]), IOERR);
    assert_eq!(disk.range(VIRTIO_BLK_T_DISCARD, MIB - 4096, 8192, 0), IOERR);
    assert_eq!(
        disk.range(VIRTIO_BLK_T_WRITE_ZEROES, MIB - 512, 1024, 0),
        IOERR
    );
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(disk.range(kind, 0, 0, 0), IOERR, "of nothing");
        let huge = 512 * u64::from(u32::MAX);
        assert_eq!(disk.range(kind, 0, huge, 0), IOERR);
    }
    let (status, _, _) = disk.request(VIRTIO_BLK_T_OUT, u64::MAX, &[1; 512], 0);
    assert_eq!(status, IOERR);
    assert_eq!(contents(&a), [1; 1 << 20]);
    assert_eq!(contents(&b), [2; 1 << 20]);
    // Ranges of both files in one request.
    let mut ranges = Vec::new();
    for offset in [0, MIB] {
        ranges.extend((offset / 512).to_le_bytes());
        ranges.extend(8u32.to_le_bytes());
        ranges.extend(0u32.to_le_bytes());
    }
    assert_eq!(disk.request(VIRTIO_BLK_T_DISCARD, 0, &ranges, 0).0, OK);
    assert_eq!(contents(&a)[..4096], [0; 4096]);
    assert_eq!(contents(&b)[..4096], [0; 4096]);
}

#[test]
fn the_serial_is_the_volumes_while_it_is_alone() {
    let mut disk = Disk::of_volumes();
    let serial = |disk: &mut Disk| disk.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20).2;
    let named = |serial: &str| VolumeOptions {
        serial: serial.to_owned(),
        ..VolumeOptions::default()
    };
    assert_eq!(serial(&mut disk)[..4], *b"own\0");
    let one = "pv-0123456789abcdefghij";
    disk.bay
        .attach_volume("a", file_with(&[1; 4096]), named(one))
        .expect("attach");
    assert_eq!(serial(&mut disk), one.as_bytes()[..20]);
    disk.bay
        .attach_volume("b", file_with(&[1; 4096]), named("two"))
        .expect("attach");
    assert_eq!(serial(&mut disk)[..4], *b"own\0");
    disk.bay.detach("a").expect("detach");
    assert_eq!(serial(&mut disk)[..4], *b"two\0");
}

#[test]
fn what_waits_for_its_turn_holds_nothing_else_up() {
    let (slow, free) = (file_with(&[0; 8192]), file_with(&[0; 8192]));
    let mut disk = Disk::of_volumes();
    disk.set_clock(100);
    // A sector a second, of which two leave a debt: the alarm is set to a time that
    // this test's clock does not reach by itself.
    let options = VolumeOptions {
        limits: IoLimits {
            bytes: rate(512, 1000),
            operations: None,
        },
        ..VolumeOptions::default()
    };
    let file = slow.try_clone().expect("clone");
    disk.bay
        .attach_volume("slow", file, options)
        .expect("attach");
    let file = free.try_clone().expect("clone");
    let other = disk.bay.attach_volume("free", file, volume(false));
    let other = other.expect("attach").offset;

    let heads: Vec<u16> = (0..4).map(|n| disk.offer_write(n * 512, 7)).collect();
    assert_eq!(disk.done(), heads[..2], "the burst");
    for n in 0..16 {
        let head = disk.offer_write(other + n * 512, 8);
        assert_eq!(disk.done(), [head], "another extent");
    }
    assert_eq!(contents(&slow)[1024..1536], [0; 512]);
    disk.kick();
    assert!(disk.done().is_empty(), "no time has passed");
    disk.set_clock(101);
    disk.kick();
    assert_eq!(disk.done(), heads[2..3], "in their order, at the rate");
    assert_eq!(contents(&slow)[1024..1536], [7; 512]);
    assert_eq!(contents(&slow)[1536..2048], [0; 512]);
    let late = disk.offer_write(2048, 9);
    // A flush waits for nobody: what waits is not written yet.
    assert_eq!(disk.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
    disk.set_clock(200);
    disk.kick();
    assert_eq!(disk.done(), [heads[3], late]);
}

#[test]
fn limits_that_are_lifted_let_everything_go_on_without_a_bell() {
    let mut disk = Disk::of_volumes();
    let options = VolumeOptions {
        limits: IoLimits {
            bytes: rate(1, 1),
            operations: None,
        },
        ..VolumeOptions::default()
    };
    let file = file_with(&[0; 8192]);
    disk.bay.attach_volume("v", file, options).expect("attach");
    let first = disk.offer_write(0, 1);
    let second = disk.offer_write(512, 1);
    assert_eq!(disk.done(), [first]);
    disk.bay.limit("v", IoLimits::default()).expect("limit");
    let long = Duration::from_secs(600);
    assert!(disk.harness.poll_host(long).expect("the device works"));
    assert_eq!(disk.done(), [second]);
}

#[test]
fn the_alarm_goes_off_when_a_request_may_go_on() {
    let mut disk = Disk::of_volumes();
    let options = VolumeOptions {
        limits: operations(50, 1),
        ..VolumeOptions::default()
    };
    let file = file_with(&[0; 8192]);
    disk.bay.attach_volume("v", file, options).expect("attach");
    let heads: Vec<u16> = (0..4).map(|n| disk.offer_write(n * 512, 7)).collect();
    let mut done = disk.done();
    while done.len() < heads.len() {
        let long = Duration::from_secs(600);
        assert!(disk.harness.poll_host(long).expect("the device works"));
        done.extend(disk.done());
    }
    assert_eq!(done, heads);
}

#[test]
fn what_waits_is_answered_when_its_extent_goes_and_forgotten_by_a_reset() {
    let mut disk = Disk::of_volumes();
    disk.set_clock(1);
    let slow = || VolumeOptions {
        limits: operations(1, 1),
        ..VolumeOptions::default()
    };
    let file = file_with(&[0; 8192]);
    disk.bay.attach_volume("v", file, slow()).expect("attach");
    let heads = [disk.offer_write(0, 1), disk.offer_write(0, 1)];
    assert_eq!(disk.done(), heads[..1]);
    disk.bay.detach("v").expect("detach");
    let long = Duration::from_secs(600);
    assert!(disk.harness.poll_host(long).expect("the device works"));
    assert_eq!(disk.done(), heads[1..]);

    let file = file_with(&[0; 8192]);
    disk.bay.attach_volume("v", file, slow()).expect("attach");
    let first = disk.offer_write(0, 1);
    disk.offer_write(0, 1);
    assert_eq!(disk.done(), [first]);
    disk.harness.device.reset();
    disk.set_clock(1000);
    disk.kick();
    assert!(disk.done().is_empty());
}

#[test]
fn a_driver_that_offers_what_waits_again_and_again_ends_its_device() {
    let mut disk = Disk::of_volumes();
    disk.set_clock(1);
    let options = VolumeOptions {
        limits: operations(1, 1),
        ..VolumeOptions::default()
    };
    let file = file_with(&[0; 8192]);
    disk.bay.attach_volume("v", file, options).expect("attach");
    disk.offer_write(0, 1);
    let waits = disk.offer_write(0, 1);
    let mut offers = 0;
    let ended = loop {
        disk.harness.rings[0].offer(waits);
        offers += 1;
        match disk.harness.kick(0) {
            Ok(()) => assert!(offers < 2000, "it keeps all of them"),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, DeviceError::Queue { queue: 0, .. }));
}

/// What a driver does to one of two volumes of 64 sectors.
#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8),
    Zero(bool),
    Discard,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn two_volumes_are_two_vectors_of_bytes(
        steps in prop::collection::vec(
            (
                prop_oneof![
                    Just(Step::Read),
                    any::<u8>().prop_map(Step::Write),
                    any::<bool>().prop_map(Step::Zero),
                    Just(Step::Discard),
                ],
                any::<bool>(), 0..70u64, 1..40u64,
            ),
            1..60,
        ),
    ) {
        const SECTORS: u64 = 64;
        let mut models = [pattern(64 * 512), vec![3; 64 * 512]];
        let files = [file_with(&models[0]), file_with(&models[1])];
        let mut disk = Disk::of_volumes();
        let offsets = [0, 1].map(|n: usize| {
            let file = files[n].try_clone().expect("clone");
            disk.bay.attach_volume(&n.to_string(), file, volume(n == 1)).expect("attach").offset
        });
        for (step, second, at, len) in steps {
            let which = usize::from(second);
            let inside = at + len <= SECTORS;
            let place = offsets[which] + at * 512;
            let expected = if inside && !second { OK } else { IOERR };
            let model = &mut models[which];
            let bytes = (at * 512) as usize..((at + len) * 512) as usize;
            match step {
                Step::Read => {
                    let (status, data) = disk.read(place, (len * 512) as u32);
                    prop_assert_eq!(status, if inside { OK } else { IOERR });
                    if inside {
                        prop_assert_eq!(data, &model[bytes]);
                    }
                }
                Step::Write(byte) => {
                    let data = vec![byte; (len * 512) as usize];
                    prop_assert_eq!(disk.write(place, &data), expected);
                    if expected == OK {
                        model[bytes].fill(byte);
                    }
                }
                Step::Zero(unmap) => {
                    let kind = VIRTIO_BLK_T_WRITE_ZEROES;
                    prop_assert_eq!(disk.range(kind, place, len * 512, unmap.into()), expected);
                    if expected == OK {
                        model[bytes].fill(0);
                    }
                }
                Step::Discard => {
                    let kind = VIRTIO_BLK_T_DISCARD;
                    prop_assert_eq!(disk.range(kind, place, len * 512, 0), expected);
                    if expected == OK {
                        model[bytes].fill(0);
                    }
                }
            }
        }
        for n in [0, 1] {
            prop_assert_eq!(contents(&files[n]), models[n].clone());
        }
    }
}
