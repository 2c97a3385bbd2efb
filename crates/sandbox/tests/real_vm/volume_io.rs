//! What a guest asks of a block volume: at what rate, and for zeroes.

use crate::block_volumes::{MIB, at, device, programs_of_the_host, volume};
use crate::node::Node;
use rustix::fs::{SeekFrom, seek};
use sandbox::{DeviceOf, IoLimits, PathVolume, RateLimit, ShownAs};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A container with the volume `raw`, on a file, as `/dev/xvda`.
async fn with_a_device(node: &Node, name: &str, raw: &Path) -> (String, String) {
    let volumes = vec![PathVolume {
        volume: volume("raw", ShownAs::Device),
        at: at(raw),
    }];
    let mut spec = Node::spec_with_volumes(name, volumes);
    spec.shares = true;
    let pod = node.sandboxes.run_sandbox(spec).await.unwrap().spec.id;
    let mut container = node.container("c", "sleep 100000");
    container.devices = vec![device(DeviceOf::Volume, "raw", "/dev/xvda")];
    container.mounts.extend(programs_of_the_host());
    let id = node.start(&pod, container).await;
    (pod, id)
}

/// What the same work takes with a limit and without one, in one run: how fast this
/// machine is counts on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_slows_its_volume_down_and_goes_again() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let raw = node.disk("raw.img", 16 * MIB);
    let (pod, id) = with_a_device(&node, "limited", &raw).await;
    let limit = |per_second, burst| Some(RateLimit { per_second, burst });
    let bytes = IoLimits {
        bytes: limit(128 << 10, 64 << 10),
        operations: None,
    };
    let operations = IoLimits {
        bytes: None,
        operations: limit(5, 1),
    };
    // 1 MiB past the guest's cache; 60 requests of one sector.
    let large = "dd if=/dev/zero of=/dev/xvda bs=64k count=16 conv=notrunc oflag=direct 2>&1";
    let small = "dd if=/dev/zero of=/dev/xvda bs=512 count=60 conv=notrunc oflag=direct 2>&1";
    for (work, limits, at_least) in [
        (large, bytes, Duration::from_secs((1024 - 64) / 128)),
        (small, operations, Duration::from_secs((60 - 1) / 5)),
    ] {
        let (mut free, mut held) = (Duration::MAX, Duration::ZERO);
        for limits in [IoLimits::default(), limits, IoLimits::default()] {
            let is_limited = limits != IoLimits::default();
            let set = node.sandboxes.limit_volume(&pod, "raw", limits);
            set.await.unwrap();
            let started = Instant::now();
            node.script(&id, &format!("/usr/bin/{work}")).await;
            if is_limited {
                held = started.elapsed();
            } else {
                free = free.min(started.elapsed());
            }
        }
        println!("{work}: {held:?} with a limit, {free:?} without");
        // No machine is too slow for this, and none too fast: what the limit lets
        // through in a time is counted, however long the rest takes.
        assert!(held >= at_least, "{held:?} instead of {at_least:?}");
        assert!(held > free * 2, "{held:?}, without a limit {free:?}");
    }
}

/// First byte at or after `from` that takes room on the host.
fn data_from(file: &File, from: u64) -> Option<u64> {
    seek(file, SeekFrom::Data(from)).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_that_a_guest_asks_for_take_no_writing() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let raw = node.disk("raw.img", 8 * MIB);
    let (_, id) = with_a_device(&node, "zeroes", &raw).await;
    let fill = "/usr/bin/dd if=/dev/urandom of=/dev/xvda bs=1M count=8 conv=notrunc,fsync 2>&1";
    node.script(&id, fill).await;
    let file = File::open(&raw).unwrap();
    assert_eq!(data_from(&file, 0), Some(0));
    let before = node.script(&id, "head -c 1048576 /dev/xvda | md5sum").await;
    // Zeroes that stay allocated.
    let zero = "/usr/sbin/blkdiscard -f -z -o 1048576 -l 2097152 /dev/xvda && sync";
    node.script(&id, zero).await;
    // Unwritten: asked before anybody reads, which would look like data.
    let data = data_from(&file, MIB);
    assert_eq!(data, Some(3 * MIB), "written as zeroes instead");
    let zeroes = "dd if=/dev/xvda bs=1M skip=1 count=2 2>/dev/null | tr -d '\\0' | wc -c";
    assert_eq!(node.script(&id, zeroes).await, "0");
    let mut found = vec![1; 4096];
    for at in [MIB, 2 * MIB, 3 * MIB - 4096] {
        file.read_exact_at(&mut found, at).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "at {at}");
    }
    // What lies around is as it was.
    let after = node.script(&id, "head -c 1048576 /dev/xvda | md5sum").await;
    assert_eq!(after, before);
    file.read_exact_at(&mut found, 3 * MIB).unwrap();
    assert!(found.iter().any(|byte| *byte != 0));
    // A write into them is a write.
    let write = "printf again | /usr/bin/dd of=/dev/xvda seek=4096 conv=notrunc,fsync 2>&1";
    node.script(&id, write).await;
    file.read_exact_at(&mut found, 2 * MIB).unwrap();
    assert_eq!(&found[..5], b"again");
}
