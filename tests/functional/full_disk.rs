//! A full disk below --root: a small tmpfs in the daemon's mount namespace. Each
//! test fills it, sees what is said, makes room, and sees that all works again.

use crate::Test;
use crate::crash::{running, vmm_pid};
use crate::images::tree;
use anyhow::ensure;
use cri_api::v1;
use rustix::process::{Signal, kill_process};
use serde_json::json;
use spherule_tests::cri::{Cri, image, refused};
use spherule_tests::manifest::{container, one, pod};
use spherule_tests::{Daemon, DaemonOptions, Registries};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use test_images::{Compression, Layer, Registry, busybox_image, noise};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    ("full_at_the_start_refuses_the_pod", full_at_start),
    (
        "scratch_disk_that_finds_no_room_fails_writes",
        full_by_scratch,
    ),
    (
        "log_that_finds_no_room_waits_and_loses_nothing",
        full_by_log,
    ),
    (
        "vm_that_ends_on_a_full_disk_is_recorded_once_there_is_room",
        full_at_the_end,
    ),
];

/// What needs a registry besides.
pub(crate) const PULLS: &[Test] = &[(
    "pull_that_finds_no_room_leaves_the_store_whole",
    full_by_pull,
)];

const MIB: u64 = 1 << 20;
/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with 48 MiB for everything.
fn daemon() -> anyhow::Result<Daemon> {
    daemon_with(Vec::new())
}

fn daemon_with(args: Vec<String>) -> anyhow::Result<Daemon> {
    let small = "mkdir $d/root; mount -t tmpfs -o size=48m,mode=0700 tmpfs $d/root";
    Daemon::with(DaemonOptions {
        prepare: Some(small.into()),
        args,
        ..DaemonOptions::default()
    })
}

fn filler(daemon: &Daemon) -> PathBuf {
    daemon.seen(&daemon.root()).join("filler")
}

/// Bytes that are free.
fn free(daemon: &Daemon) -> anyhow::Result<u64> {
    let found = rustix::fs::statvfs(daemon.seen(&daemon.root()))?;
    Ok(found.f_bavail * found.f_frsize)
}

/// Fills the disk until only this many bytes are free.
fn fill(daemon: &Daemon, leave: u64) -> anyhow::Result<()> {
    let mut file = File::create(filler(daemon))?;
    let page = [0xa5; 4096];
    while free(daemon)? > leave {
        match file.write_all(&page) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::StorageFull => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Uses up the room that the file of the records has in itself.
fn fill_records(daemon: &Daemon) -> anyhow::Result<()> {
    for size in [100_000, 10_000, 1_000, 10] {
        let refused = (0..500).find_map(|n| {
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": format!("filler-{size}-{n}")},
                "data": {"text": "x".repeat(size)},
            });
            match daemon.apply(&map.to_string()) {
                Ok(ran) if ran.code == Some(0) => None,
                ran => Some(ran),
            }
        });
        let Some(ran) = refused else {
            anyhow::bail!("pieces of {size} bytes always find room");
        };
        ran?.refused(&["No space left"])?;
    }
    Ok(())
}

fn make_room(daemon: &Daemon) -> anyhow::Result<()> {
    Ok(std::fs::remove_file(filler(daemon))?)
}

/// A pod runs, and takes nothing with it.
fn works(daemon: &Daemon) -> anyhow::Result<()> {
    let manifest = one("works", "echo works", json!({}));
    let out = daemon.run_with(&manifest, &["--rm"])?.ok()?;
    ensure!(out == "[c] works\n", "{out}");
    Ok(())
}

/// No pod's files.
fn nothing_left(daemon: &Daemon) -> anyhow::Result<()> {
    let pods = daemon.seen(&daemon.root()).join("pods");
    let left: Vec<_> = std::fs::read_dir(pods)?.collect();
    ensure!(left.is_empty(), "left: {left:?}");
    let left = crate::lifecycle::processes_naming(daemon)?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

fn full_at_start() -> anyhow::Result<()> {
    let daemon = daemon()?;
    fill(&daemon, 0)?;
    let manifest = one("full", "echo must not run", json!({}));
    for _ in 0..2 {
        daemon.run(&manifest)?.refused(&["No space left"])?;
    }
    daemon.cli(["inspect", "full"])?.refused(&["full"])?;
    let archive = daemon.dir().join("busybox.tar");
    let import = daemon.cli(["import", &archive.to_string_lossy()])?;
    import.refused(&["No space left"])?;
    make_room(&daemon)?;
    works(&daemon)?;

    // Room for the record, not for the scratch disk: an empty one of that size takes
    // more than a MiB.
    fill(&daemon, MIB)?;
    let large = json!({"resources": {"limits": {"ephemeral-storage": "4Ti"}}});
    let large = container("c", "echo must not run", large);
    let ran = daemon.run(&pod("full", &[large], json!({})))?;
    ran.refused(&["disk", "No space left"])?;
    nothing_left(&daemon)?;
    make_room(&daemon)?;
    daemon.cli(["rm", "full"])?.ok()?;
    works(&daemon)?;
    nothing_left(&daemon)
}

fn full_by_scratch() -> anyhow::Result<()> {
    let daemon = daemon()?;
    works(&daemon)?;
    let before = free(&daemon)?;
    let script = "dd if=/dev/zero of=/big bs=1M count=100 conv=fsync 2>/dev/null && exit 5; exit 7";
    let ran = daemon.run(&one("scratch", script, json!({})))?;
    // The write failed, and the container went on.
    ran.code(7)?;
    daemon.cli(["rm", "scratch"])?.ok()?;
    nothing_left(&daemon)?;
    works(&daemon)?;
    // Records may have grown a little.
    let after = free(&daemon)?;
    ensure!(
        after + MIB >= before,
        "{before} bytes were free, now {after}"
    );
    Ok(())
}

fn full_by_log() -> anyhow::Result<()> {
    let daemon = daemon()?;
    works(&daemon)?;
    let script = "echo up; sleep 1; dd if=/dev/zero bs=64k count=128 2>/dev/null | tr '\\0' x; echo; echo done";
    daemon.run_detached(&one("log", script, json!({})))?;
    daemon.wait_for("log", "running", |p| {
        p["containers"][0]["state"] == "STATE_RUNNING"
    })?;
    fill(&daemon, 4 * MIB)?;
    daemon.wait_for("log", "out of room", |_| {
        free(&daemon).is_ok_and(|n| n < 64 << 10)
    })?;
    // The container waits; the daemon does not.
    let pods = daemon.cli(["ps"])?.ok()?;
    ensure!(pods.contains("log"), "{pods}");
    let pod = daemon.inspect("log")?;
    ensure!(pod["containers"][0]["state"] == "STATE_RUNNING", "{pod:#}");
    make_room(&daemon)?;
    daemon.wait_for("log", "ended", |p| p["phase"] == "PHASE_SUCCEEDED")?;
    let logs = daemon.cli(["logs", "log"])?.ok()?;
    let lines: Vec<usize> = logs.lines().map(str::len).collect();
    ensure!(lines == [2, 8 << 20, 4], "{lines:?}");
    daemon.cli(["rm", "log"])?.ok()?;
    works(&daemon)?;
    nothing_left(&daemon)
}

fn full_at_the_end() -> anyhow::Result<()> {
    let daemon = daemon()?;
    works(&daemon)?;
    daemon.run_detached(&one("ends-full", "exec sleep 1000", json!({})))?;
    let pod = daemon.wait_for("ends-full", "running", running)?;
    fill(&daemon, 0)?;
    fill_records(&daemon)?;
    kill_process(vmm_pid(&pod)?, Signal::KILL)?;
    let start = Instant::now();
    // The VM's end is recorded first, then the pod's: the last room may do for one.
    let tries = ["could not be recorded; trying again", "task is held up"];
    let refused =
        |line: &str| tries.iter().any(|told| line.contains(told)) && line.contains("No space left");
    while !daemon.log().lines().any(refused) {
        ensure!(start.elapsed() < PATIENCE, "nobody tried to record it");
        std::thread::sleep(Duration::from_millis(100));
    }
    daemon.cli(["ps"])?.ok()?;
    make_room(&daemon)?;
    let pod = daemon.wait_for("ends-full", "failed", |p| p["phase"] == "PHASE_FAILED")?;
    ensure!(pod["containers"][0]["reason"] == "VmDied", "{pod:#}");
    daemon.cli(["rm", "ends-full"])?.ok()?;
    works(&daemon)?;
    nothing_left(&daemon)
}

/// An image whose layer has so many MiB that do not compress.
fn push(registry: &Registry, tag: &str, mib: usize) -> anyhow::Result<()> {
    let layer = Layer::default().file("weight", 0o644, &noise(1, mib << 20))?;
    let image = busybox_image("reg.test/app")?.layer(layer.into_bytes()?, Compression::None);
    Ok(registry.push("app", tag, &image.blobs()?)?)
}

fn full_by_pull() -> anyhow::Result<()> {
    let registry = Registry::start()?;
    // Lies on the disk twice: as a layer, and in the file system made of it.
    for (tag, mib) in [("fits", 12), ("unpacks-not", 28), ("loads-not", 60)] {
        push(&registry, tag, mib)?;
    }
    let registries = Registries::plain("reg.test", registry.address())?;
    let daemon = daemon_with(registries.args())?;
    let store = |daemon: &Daemon| tree(&daemon.seen(&daemon.root()).join("images"));
    let before = store(&daemon)?;

    let cri = Cri::connect(&daemon)?;
    for tag in ["unpacks-not", "loads-not"] {
        let name = format!("reg.test/app:{tag}");
        let ran = daemon.cli(["pull", &name])?;
        ran.refused(&["No space left"])?;
        let request = v1::PullImageRequest {
            image: Some(image(&name)),
            ..v1::PullImageRequest::default()
        };
        refused(
            cri.wait(cri.images.clone().pull_image(request)),
            Code::ResourceExhausted,
            &["No space left"],
        )?;
        let after = store(&daemon)?;
        ensure!(after == before, "{tag}: before {before:?}, after {after:?}");
    }
    works(&daemon)?;
    daemon.cli(["pull", "reg.test/app:fits"])?.ok()?;
    let weight = json!({"image": "reg.test/app:fits", "imagePullPolicy": "Never"});
    let manifest = one("weighs", "stat -c %s /weight", weight);
    let out = daemon.run_with(&manifest, &["--rm"])?.ok()?;
    ensure!(out == format!("[c] {}\n", 12 << 20), "{out}");
    Ok(())
}
