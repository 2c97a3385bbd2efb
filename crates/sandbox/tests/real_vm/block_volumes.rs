//! Block volumes: files and block devices of the host as disks of a sandbox.

use crate::node::{Node, PATIENCE};
use sandbox::{
    BlockVolumeSpec, DeviceOf, DeviceSpec, DiskPath, FileSystem, HostMount, IoLimits, MountSource,
    MountSpec, PathVolume, RateLimit, SandboxError, SandboxSpec, ShownAs, VolumeSource,
    VolumeState,
};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const MIB: u64 = 1 << 20;
const MADE: ShownAs = ShownAs::FileSystem {
    kind: None,
    make: true,
};

pub(crate) fn volume(name: &str, shown_as: ShownAs) -> BlockVolumeSpec {
    BlockVolumeSpec {
        name: name.to_owned(),
        read_only: false,
        shown_as,
        serial: format!("serial-of-{name}"),
        group: None,
        group_change: fs_group::Policy::default(),
        limits: IoLimits::default(),
        exclusive: true,
    }
}

pub(crate) fn at(path: &Path) -> DiskPath {
    DiskPath {
        path: path.to_owned(),
        within: Vec::new(),
    }
}

fn by_path(path: &Path) -> VolumeSource {
    VolumeSource::Path(at(path))
}

pub(crate) fn device(of: DeviceOf, path: &str, destination: &str) -> DeviceSpec {
    DeviceSpec {
        of,
        path: path.to_owned(),
        destination: destination.to_owned(),
        read_only: false,
    }
}

fn mount(name: &str, destination: &str) -> MountSpec {
    MountSpec {
        source: MountSource::Volume(name.to_owned()),
        sub_path: String::new(),
        destination: destination.to_owned(),
        read_only: false,
    }
}

/// Runs a program of the host; what it writes.
fn host(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {said}{errors}"
    );
    said
}

/// SHA-256 of the first bytes of a file, as sha256sum writes it.
fn checksum(path: &Path, bytes: u64) -> String {
    let script = format!("head -c {bytes} {} | sha256sum", path.display());
    let sum = host("sh", &["-c", &script]);
    sum.split(' ').next().unwrap().to_owned()
}

/// Where the host's programs are, for the guest.
pub(crate) fn programs_of_the_host() -> impl Iterator<Item = MountSpec> {
    ["/usr", "/lib", "/lib64"].into_iter().map(|dir| MountSpec {
        source: MountSource::Host(HostMount {
            path: dir.into(),
            host_to_container: false,
            recursive_read_only: true,
            id_mapped: false,
            within: Vec::new(),
        }),
        sub_path: String::new(),
        destination: dir.to_owned(),
        read_only: true,
    })
}

impl Node {
    /// A sparse file of the host.
    pub(crate) fn disk(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    pub(crate) fn spec_with_volumes(name: &str, volumes: Vec<PathVolume>) -> SandboxSpec {
        let mut spec = Self::spec(name);
        spec.volume_bays = 2;
        spec.block_volumes = volumes;
        spec
    }

    pub(crate) async fn script(&self, id: &str, script: &str) -> String {
        let done = self.sh(id, script).await;
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.code, 0, "{script}: {stderr}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    async fn fails(&self, id: &str, script: &str) -> String {
        let done = self.sh(id, script).await;
        assert_ne!(done.code, 0, "{script}");
        String::from_utf8_lossy(&done.stderr).into_owned()
    }

    fn states(&self, sandbox: &str) -> Vec<(String, VolumeState)> {
        let volumes = self.sandboxes.sandbox(sandbox).unwrap().block_volumes;
        let state = |v: sandbox::BlockVolume| (v.spec.name, v.state);
        volumes.into_iter().map(state).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_volumes_are_devices_and_file_systems_that_last() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let raw = node.disk("raw.img", 8 * MIB + 512);
    let data = node.disk("data.img", 64 * MIB);
    let mut shared = volume("data", MADE);
    shared.group = Some(1234);
    let volumes = [(volume("raw", ShownAs::Device), &raw), (shared, &data)];
    let volumes = volumes.map(|(volume, path)| PathVolume {
        volume,
        at: at(path),
    });
    let spec = Node::spec_with_volumes("volumes", volumes.to_vec());
    let pod = node.sandboxes.run_sandbox(spec).await.unwrap().spec.id;
    let mut container = node.container("c", "sleep 100000");
    container.devices = vec![device(DeviceOf::Volume, "raw", "/dev/xvda")];
    container.mounts = vec![mount("data", "/data")];
    let id = node.start(&pod, container).await;

    raw_device(&node, &id, &raw).await;
    live_resize(&node, &pod, &id, &raw, &data).await;
    refusals(&node, &pod, &data).await;
    hot_attach(&node, &pod, &id).await;

    // In use it stays, then it goes, and can be had elsewhere.
    let error = node.sandboxes.detach_volume(&pod, "raw").await.unwrap_err();
    assert!(
        error.to_string().contains("has it; remove that first"),
        "{error}"
    );
    node.script(&id, "echo kept >/data/kept && echo lost? >/data/unsynced")
        .await;
    node.sandboxes.remove_container(&id).await.unwrap();
    node.sandboxes.detach_volume(&pod, "raw").await.unwrap();
    node.sandboxes.detach_volume(&pod, "raw").await.unwrap();
    assert_eq!(
        node.states(&pod),
        [("data".to_owned(), VolumeState::Attached)]
    );
    let again = volume("again", ShownAs::Device);
    let attached = node.sandboxes.attach_volume(&pod, again, by_path(&raw));
    attached.await.unwrap();

    // Who still has it when the pod ends is killed.
    let mut last = node.container(
        "last",
        "echo open >/data/open; exec sleep 100000 >>/data/open",
    );
    last.mounts = vec![mount("data", "/data")];
    let last = node.start(&pod, last).await;
    node.script(&last, "until test -s /data/open; do sleep 0.1; done")
        .await;
    // Unmounted with the pod: nothing is left to repair, nothing is lost.
    node.sandboxes.stop_sandbox(&pod).await.unwrap();
    let image = data.to_str().unwrap();
    host("e2fsck", &["-f", "-n", image]);
    assert_eq!(host("debugfs", &["-R", "cat /kept", image]), "kept\n");
    assert_eq!(host("debugfs", &["-R", "cat /unsynced", image]), "lost?\n");
    assert_eq!(node.states(&pod), []);
    File::open(&data).unwrap().try_lock().unwrap();
    node.sandboxes.remove_sandbox(&pod).await.unwrap();
}

/// Written, read, discarded and zeroed by the guest, looked at on the host.
async fn raw_device(node: &Node, id: &str, raw: &Path) {
    let size = node.script(id, "blockdev --getsize64 /dev/xvda").await;
    assert_eq!(size, (8 * MIB + 512).to_string());
    let write = "dd if=/dev/urandom of=/tmp/r bs=1M count=4 2>/dev/null &&
        dd if=/tmp/r of=/dev/xvda bs=64k conv=notrunc,fsync 2>/dev/null &&
        sha256sum /tmp/r | cut -d' ' -f1";
    let sum = node.script(id, write).await;
    assert_eq!(checksum(raw, 4 * MIB), sum);
    let read = "echo 3 >/proc/sys/vm/drop_caches 2>/dev/null;
        head -c 4194304 /dev/xvda | sha256sum | cut -d' ' -f1";
    assert_eq!(node.script(id, read).await, sum);
    // The last, half block of 4096 bytes.
    let end = 8 * MIB + 504;
    let script = format!("printf ends-now | dd of=/dev/xvda bs=1 seek={end} conv=notrunc,fsync");
    node.script(id, &script).await;
    let mut last = [0; 8];
    File::open(raw)
        .unwrap()
        .read_exact_at(&mut last, end)
        .unwrap();
    assert_eq!(&last, b"ends-now");
    assert_eq!(fs::metadata(raw).unwrap().len(), 8 * MIB + 512);

    let before = fs::metadata(raw).unwrap().blocks();
    let discard = "blkdiscard -o 1048576 -l 2097152 /dev/xvda && sync";
    node.script(id, discard).await;
    assert!(fs::metadata(raw).unwrap().blocks() < before);
    let mut middle = vec![1; 2 * 1048576];
    File::open(raw)
        .unwrap()
        .read_exact_at(&mut middle, MIB)
        .unwrap();
    assert!(middle.iter().all(|byte| *byte == 0));
    // By its serial number, as long as it is alone on its device.
    let serial = "cat /sys/dev/block/$(printf %d:%d 0x$(stat -c %t /dev/xvda) \
        0x$(stat -c %T /dev/xvda))/../serial";
    assert_eq!(node.script(id, serial).await, "serial-of-raw");
    // Any user of the volumes' group, nobody else.
    assert_eq!(node.script(id, "stat -c '%a %u' /dev/xvda").await, "660 0");
    assert_eq!(node.script(id, "stat -c '%g %a' /data").await, "1234 2775");
}

/// Both grow while they are in use.
async fn live_resize(node: &Node, pod: &str, id: &str, raw: &Path, data: &Path) {
    let sizes = "blockdev --getsize64 /dev/xvda; df -k /data | tail -n 1 | awk '{print $2}'";
    let before = node.script(id, sizes).await;
    for (path, name, bytes) in [(raw, "raw", 16 * MIB), (data, "data", 128 * MIB)] {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let now = node.sandboxes.resize_volume(pod, name).await.unwrap();
        assert_eq!(now, bytes);
    }
    let after = node.script(id, sizes).await;
    let lines = |text: &str| -> Vec<u64> { text.lines().map(|l| l.parse().unwrap()).collect() };
    let (before, after) = (lines(&before), lines(&after));
    assert_eq!(after[0], 16 * MIB);
    assert!(after[1] > before[1] + 50_000, "{before:?} {after:?}");
    let script = "dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' z |
        dd of=/dev/xvda bs=1M seek=15 conv=notrunc,fsync 2>/dev/null";
    node.script(id, script).await;
    let mut last = [0; 4];
    File::open(raw)
        .unwrap()
        .read_exact_at(&mut last, 16 * MIB - 4)
        .unwrap();
    assert_eq!(&last, b"zzzz");
    let error = node.sandboxes.resize_volume(pod, "none").await.unwrap_err();
    assert!(matches!(error, SandboxError::Volume { .. }), "{error}");
}

/// What cannot be attached says why, and leaves nothing.
async fn refusals(node: &Node, pod: &str, data: &Path) {
    let before = node.states(pod);
    let other = node.disk("other.img", 16 * MIB);
    File::options()
        .write(true)
        .open(&other)
        .unwrap()
        .write_all_at(b"important", 512)
        .unwrap();
    let sum = checksum(&other, 16 * MIB);
    let xfs = ShownAs::FileSystem {
        kind: Some(FileSystem::Xfs),
        make: true,
    };
    let directory = node.dir.path().to_owned();
    for (volume, path, words) in [
        (volume("x", MADE), &other, "not blank"),
        (volume("x", xfs), &other, "not blank"),
        (
            volume("x", ShownAs::Device),
            &data.to_owned(),
            "one place at a time",
        ),
        (volume("x", ShownAs::Device), &directory, "neither"),
        (volume("data", MADE), &other, "another volume of this name"),
    ] {
        let attached = node.sandboxes.attach_volume(pod, volume, by_path(path));
        let error = attached.await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(checksum(&other, 16 * MIB), sum);
    // A file system that is none: the guest finds out, and all is undone.
    File::options()
        .write(true)
        .open(&other)
        .unwrap()
        .write_all_at(&[0x53, 0xef], 1080)
        .unwrap();
    let attached = node
        .sandboxes
        .attach_volume(pod, volume("x", MADE), by_path(&other));
    let error = attached.await.unwrap_err().to_string();
    assert!(error.contains("no sound file system"), "{error}");
    File::open(&other).unwrap().try_lock().unwrap();
    assert_eq!(node.states(pod), before);
}

/// Attached while containers run, read-only and by descriptor.
async fn hot_attach(node: &Node, pod: &str, id: &str) {
    let image = node.disk("fixed.img", 16 * MIB);
    let tree = node.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("hello"), "from the host\n").unwrap();
    let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
    host("mkfs.ext4", &["-q", "-F", "-d", tree, path]);
    let sum = checksum(&image, 16 * MIB);
    let mut disk = volume("late", ShownAs::Device);
    disk.read_only = true;
    let source = VolumeSource::Descriptor(File::open(&image).unwrap().into());
    node.sandboxes
        .attach_volume(pod, disk.clone(), source)
        .await
        .unwrap();
    // Again is the same; another one of the name is not.
    node.sandboxes
        .attach_volume(pod, disk.clone(), by_path(&image))
        .await
        .unwrap();
    let mut fixed = volume("fixed", MADE);
    fixed.read_only = true;
    node.sandboxes
        .attach_volume(pod, fixed, by_path(&image))
        .await
        .unwrap();

    let mut container = node.container("late", "sleep 100000");
    container.devices = vec![device(DeviceOf::Volume, "late", "/dev/late")];
    let mut below = mount("fixed", "/one");
    below.sub_path = "hello".to_owned();
    container.mounts = vec![mount("fixed", "/fixed"), below];
    let late = node.start(pod, container).await;
    let read = "cat /fixed/hello /one; sha256sum </dev/late | cut -d' ' -f1";
    let expected = format!("from the host\nfrom the host\n{sum}");
    assert_eq!(node.script(&late, read).await, expected);
    for change in [
        "echo x >/fixed/new",
        "rm /fixed/hello",
        "dd if=/dev/zero of=/dev/late count=1",
    ] {
        node.fails(&late, change).await;
    }
    assert_eq!(checksum(&image, 16 * MIB), sum);
    // A volume that is held to a rate of one operation a second leaves others alone.
    let slow = RateLimit {
        per_second: 1,
        burst: 1,
    };
    let limits = IoLimits {
        operations: Some(slow),
        bytes: None,
    };
    node.sandboxes
        .limit_volume(pod, "late", limits)
        .await
        .unwrap();
    node.script(id, "echo x >/data/free && sync /data/free")
        .await;
    node.sandboxes
        .limit_volume(pod, "late", IoLimits::default())
        .await
        .unwrap();
    node.sandboxes.remove_container(&late).await.unwrap();
    for name in ["late", "fixed"] {
        node.sandboxes.detach_volume(pod, name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fsync_promised_is_there_after_the_vmm_was_killed() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let raw = node.disk("raw.img", 16 * MIB);
    let data = node.disk("data.img", 64 * MIB);
    let volumes = [
        (volume("raw", ShownAs::Device), &raw),
        (volume("data", MADE), &data),
    ];
    let volumes = volumes.map(|(volume, path)| PathVolume {
        volume,
        at: at(path),
    });
    let spec = Node::spec_with_volumes("killed", volumes.to_vec());
    let pod = node.sandboxes.run_sandbox(spec).await.unwrap().spec.id;
    // A number is said once it is synced in both.
    let script = "i=0; while :; do
        printf %08d $i | dd of=/dev/xvda bs=512 seek=$i conv=notrunc,fsync 2>/dev/null &&
        printf %08d $i | dd of=/data/f bs=512 seek=$i conv=notrunc,fsync 2>/dev/null || exit 1
        echo $i; i=$((i + 1)); done";
    let mut container = node.container("c", script);
    container.devices = vec![device(DeviceOf::Volume, "raw", "/dev/xvda")];
    container.mounts = vec![mount("data", "/data")];
    let log = container.log_path.clone();
    node.start(&pod, container).await;
    let said = || -> Vec<u64> {
        let lines = if log.exists() {
            Node::lines(&log)
        } else {
            Vec::new()
        };
        lines.iter().filter_map(|line| line.parse().ok()).collect()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while said().len() < 15 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", said());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let vmm = node.sandboxes.sandbox(&pod).unwrap().vmm_pid().unwrap();
    let vmm = rustix::process::Pid::from_raw(i32::try_from(vmm).unwrap()).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    node.sandboxes.stop_sandbox(&pod).await.unwrap();

    let promised = said();
    let raw = File::open(&raw).unwrap();
    let image = data.to_str().unwrap();
    // What the guest's kernel does at the next mount: the journal is written back.
    let fsck = Command::new("e2fsck")
        .args(["-f", "-p", image])
        .output()
        .unwrap();
    assert!(fsck.status.code().unwrap() <= 1, "{fsck:?}");
    let copy = node.dir.path().join("f");
    host(
        "debugfs",
        &["-R", &format!("dump /f {}", copy.display()), image],
    );
    let file = File::open(&copy).unwrap();
    for number in promised {
        for (what, file) in [("device", &raw), ("file", &file)] {
            let mut found = [0; 8];
            file.read_exact_at(&mut found, number * 512).unwrap();
            let found = String::from_utf8_lossy(&found).into_owned();
            assert_eq!(found, format!("{number:08}"), "{what}");
        }
    }
}

/// The host's fio, seen in the guest, writes at random and reads back what it wrote:
/// on the device and on the file system.
#[tokio::test(flavor = "multi_thread")]
async fn fio_reads_back_what_it_wrote() {
    if std::env::var("SPHERULE_LONG").as_deref() != Ok("1") {
        println!("skipped: takes long; cargo xtask test --long");
        return;
    }
    let Some(node) = Node::new(2).await else {
        return;
    };
    let raw = node.disk("raw.img", 256 * MIB);
    let data = node.disk("data.img", 512 * MIB);
    let volumes = [
        (volume("raw", ShownAs::Device), &raw),
        (volume("data", MADE), &data),
    ];
    let volumes = volumes.map(|(volume, path)| PathVolume {
        volume,
        at: at(path),
    });
    let mut spec = Node::spec_with_volumes("fio", volumes.to_vec());
    (spec.shares, spec.memory_mib) = (true, 512);
    let pod = node.sandboxes.run_sandbox(spec).await.unwrap().spec.id;
    let mut container = node.container("c", "sleep 100000");
    container.devices = vec![device(DeviceOf::Volume, "raw", "/dev/xvda")];
    container.mounts = vec![mount("data", "/data")];
    container.mounts.extend(programs_of_the_host());
    let id = node.start(&pod, container).await;
    for target in ["--filename=/dev/xvda", "--filename=/data/f --size=256m"] {
        let script = format!(
            "/usr/bin/fio --name=v {target} --rw=randwrite --bsrange=4k-256k --ioengine=psync \
             --direct=1 --fsync=64 --trim_percentage=10 --io_size=256m --verify=crc32c \
             --verify_fatal=1 --do_verify=1 --randseed=7"
        );
        let said = node.script(&id, &script).await;
        assert!(said.contains("err= 0"), "{said}");
        println!("{target}: {said}");
    }
    node.sandboxes.stop_sandbox(&pod).await.unwrap();
    host("e2fsck", &["-f", "-n", data.to_str().unwrap()]);
}

/// A loop device on a file, gone with the test.
struct Loop(String);

impl Loop {
    /// `None` with a message where the machine makes none.
    fn new(file: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(file)
            .output()
            .ok()?;
        if !output.status.success() {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(
            String::from_utf8(output.stdout).ok()?.trim().to_owned(),
        ))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_devices_of_the_host_are_attached_for_those_who_have_them() {
    let Some(node) = Node::new(2).await else {
        return;
    };
    let (file, large) = (
        node.disk("loop.img", 8 * MIB),
        node.disk("xfs.img", 512 * MIB),
    );
    let (Some(disk), Some(xfs)) = (Loop::new(&file), Loop::new(&large)) else {
        return;
    };
    let spec = Node::spec_with_volumes("devices", Vec::new());
    let pod = node.sandboxes.run_sandbox(spec).await.unwrap().spec.id;
    let kind = ShownAs::FileSystem {
        kind: Some(FileSystem::Xfs),
        make: true,
    };
    let attached =
        node.sandboxes
            .attach_volume(&pod, volume("x", kind), by_path(Path::new(&xfs.0)));
    attached.await.unwrap();
    // The host's kernel keeps it for us.
    let second = volume("y", ShownAs::Device);
    let second = node
        .sandboxes
        .attach_volume(&pod, second, by_path(Path::new(&xfs.0)));
    let error = second.await.unwrap_err();
    assert!(matches!(error, SandboxError::Volume { .. }), "{error}");

    // As a kubelet has it: a link somewhere to a device.
    let link = node.dir.path().join("link");
    std::os::unix::fs::symlink(&disk.0, &link).unwrap();
    assert!(sandbox::is_block_device(&link) && !sandbox::is_block_device(&file));
    let of_host = || device(DeviceOf::Host, link.to_str().unwrap(), "/dev/block");
    let mut first = node.container("first", "sleep 100000");
    first.devices = vec![of_host()];
    first.mounts = vec![mount("x", "/x")];
    let first = node.start(&pod, first).await;
    let mut second = node.container("second", "sleep 100000");
    second.devices = vec![of_host()];
    let second = node.start(&pod, second).await;
    let mut reader = node.container("reader", "sleep 100000");
    reader.devices = vec![of_host()];
    reader.devices[0].read_only = true;
    let reader = node.start(&pod, reader).await;
    let script = "printf one >/tmp/t; dd if=/tmp/t of=/dev/block conv=notrunc,fsync 2>/dev/null";
    node.script(&first, script).await;
    assert_eq!(node.script(&second, "head -c 3 /dev/block").await, "one");
    assert_eq!(node.script(&reader, "head -c 3 /dev/block").await, "one");
    node.fails(&reader, script).await;
    assert_eq!(node.states(&pod).len(), 3);
    node.script(&first, "blkdiscard /dev/block && sync").await;
    node.script(&first, "echo on-xfs >/x/f && sync /x/f && cat /x/f")
        .await;

    // Grown on the host, then in the guest.
    File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(768 * MIB)
        .unwrap();
    host("losetup", &["-c", &xfs.0]);
    let now = node.sandboxes.resize_volume(&pod, "x").await.unwrap();
    assert_eq!(now, 768 * MIB);
    let size = node
        .script(&first, "df -m /x | tail -n 1 | awk '{print $2}'")
        .await;
    assert!(size.parse::<u64>().unwrap() > 600, "{size}");

    // They go with the last container that has them.
    node.sandboxes.remove_container(&first).await.unwrap();
    assert_eq!(node.states(&pod).len(), 3);
    node.sandboxes.remove_container(&second).await.unwrap();
    node.sandboxes.remove_container(&reader).await.unwrap();
    assert_eq!(node.states(&pod), [("x".to_owned(), VolumeState::Attached)]);
    node.sandboxes.detach_volume(&pod, "x").await.unwrap();
    node.sandboxes.remove_sandbox(&pod).await.unwrap();
    let start = fs::read(&file).unwrap();
    assert!(start[..3] == [0; 3], "discarded");
}
