//! Files: fio on each kind of mount of a pod, and the same work on the host's file
//! system right before it; what one more mount costs at a container's start.
//!
//! The work is buffered, as that of most programs: what a page cache does for the
//! host it may do for the guest. On virtio-fs it never does (nothing is cached in
//! the guest). Rows named "direct" go around it.

use crate::report::{Collected, Section};
use crate::start;
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::{Value, json};
use spherule_tests::cri::{Cri, container_config, sandbox_config};
use spherule_tests::manifest::{container, documents, pod};
use spherule_tests::{Daemon, DaemonOptions};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use test_images::{Compression, Layer, busybox_image, noise};

/// fio's program.
pub(crate) const FIO: &str = "/usr/bin/fio";
const IMAGE: &str = "localhost/fio:1";
/// Bytes of the file that is worked on.
const FILE_SIZE: usize = 32 << 20;
/// Bytes of the block volume.
const BLOCK_SIZE: u64 = 1 << 30;
/// Seconds of each run of fio.
const SECONDS: &str = "2";
/// Files that are made, looked at and removed.
const FILES: &str = "10000";
/// Mounts of the container that has many.
const MOUNTS: usize = 20;

/// Name of a row, and fio's words for it.
const WORK: &[(&str, &[&str])] = &[
    ("sequential reads", &["--rw=read"]),
    ("random reads", &["--rw=randread"]),
    ("random reads, direct", &["--rw=randread", "--direct=1"]),
    ("sequential writes", &["--rw=write"]),
    ("random writes", &["--rw=randwrite"]),
    ("random writes, direct", &["--rw=randwrite", "--direct=1"]),
    (
        "sequential writes of 512 bytes",
        &["--rw=write", "--bs=512"],
    ),
];
/// The same for files as a whole.
const METADATA: &[(&str, &str)] = &[
    ("create", "filecreate"),
    ("stat", "filestat"),
    ("unlink", "filedelete"),
];
/// Kinds of mounts, and where the container has them.
const MOUNTED: &[(&str, &str)] = &[
    ("image root", "/data"),
    ("scratch disk", "/disk"),
    ("block volume", "/block"),
    ("virtio-fs", "/share"),
];

/// A daemon whose pods may have what lies in that directory.
fn daemon(engine: &str, host: &Path) -> anyhow::Result<Daemon> {
    Daemon::with(DaemonOptions {
        engine: engine.into(),
        args: vec!["--allow-host-path".into(), host.display().to_string()],
        ..DaemonOptions::default()
    })
}

/// Work on files by fio: the host's rates, and what each kind of mount has of them.
pub(crate) fn on_files(engine: &str) -> anyhow::Result<Vec<Section>> {
    // Where the daemon's disks lie, too: the same file system for all.
    let host = tempfile::tempdir()?;
    let daemon = daemon(engine, host.path())?;
    let (own, shared) = (host.path().join("own"), host.path().join("shared"));
    fs::create_dir(&own)?;
    fs::create_dir(&shared)?;
    import_fio(&daemon)?;
    daemon.apply(&block_volume(host.path())?)?.ok()?;
    let mounts = [("disk", "/disk"), ("share", "/share"), ("block", "/block")]
        .map(|(name, path)| json!({"name": name, "mountPath": path}));
    let resources = json!({"limits": {"cpu": "1", "memory": "512Mi"}});
    let extra = json!({"image": IMAGE, "volumeMounts": mounts, "resources": resources});
    let c = container("c", "sleep 100000", extra);
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "share", "hostPath": {"path": shared}},
        {"name": "block", "persistentVolumeClaim": {"claimName": "block"}},
    ]);
    let id = daemon.run_detached(&pod("fio", &[c], json!({"volumes": volumes})))?;
    start::running(&daemon, &id)?;

    let mut host_rates = Collected::default();
    let mut shares: Vec<Collected> = MOUNTED.iter().map(|_| Collected::default()).collect();
    let mut row = |name: &str, words: &[&str]| {
        eprintln!("files: {name}");
        let host_rate = rate(&on_host(&arguments(words, &own))?)?;
        host_rates.add(name, host_rate);
        for ((_, directory), share) in MOUNTED.iter().zip(&mut shares) {
            let rate = rate(&in_pod(
                &daemon,
                &id,
                &arguments(words, Path::new(directory)),
            )?)?;
            share.add(name, rate / host_rate * 100.0);
        }
        anyhow::Ok(())
    };
    for (name, words) in WORK {
        let file = [
            "--filename=file",
            "--bs=4k",
            "--time_based",
            "--runtime",
            SECONDS,
        ];
        row(name, &[&file[..], words].concat())?;
    }
    for (name, engine) in METADATA {
        let engine = format!("--ioengine={engine}");
        let words = [
            engine.as_str(),
            "--nrfiles",
            FILES,
            "--filesize=4k",
            "--openfiles=1",
        ];
        row(&format!("{name} of {FILES} files"), &words)?;
    }
    daemon.cli(["rm", "--force", &id])?.ok()?;
    let mut sections = vec![host_rates.section("files on the host: operations a second")];
    for ((name, _), share) in MOUNTED.iter().zip(shares) {
        sections.push(share.section(&format!("files on the {name}: % of the host's rate")));
    }
    Ok(sections)
}

/// A claim on a file of the host that is a disk, for an ext4 file system.
fn block_volume(host: &Path) -> anyhow::Result<String> {
    let path = host.join("block.img");
    fs::File::create(&path)?.set_len(BLOCK_SIZE)?;
    let class = "bench";
    Ok(documents(&[
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "block"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": class, "local": {"path": path, "fsType": "ext4"}}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "block"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": "1Gi"}}}}),
    ]))
}

/// The image: fio with its libraries, and a file to read.
fn import_fio(daemon: &Daemon) -> anyhow::Result<()> {
    let mut layer = Layer::default().dir("data", 0o755)?;
    layer = layer.file("data/file", 0o644, &noise(1, FILE_SIZE))?;
    for path in files_of_fio()? {
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix("/")?.display().to_string();
        layer = layer.file(&name, 0o755, &content)?;
    }
    let image = busybox_image(IMAGE)?.layer(layer.into_bytes()?, Compression::None);
    let archive = daemon.dir().join("fio.tar");
    fs::write(&archive, image.archive()?)?;
    daemon
        .cli(["import", archive.to_str().context("plain path")?])?
        .ok()?;
    Ok(())
}

/// The program and its libraries, where the loader looks for them.
fn files_of_fio() -> anyhow::Result<Vec<PathBuf>> {
    let listed = Command::new("ldd").arg(FIO).output()?;
    ensure!(listed.status.success(), "ldd {FIO} failed");
    let listed = String::from_utf8(listed.stdout)?;
    let words = listed.split_ascii_whitespace();
    let mut files: Vec<PathBuf> = words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect();
    files.push(FIO.into());
    files.sort();
    files.dedup();
    Ok(files)
}

fn arguments(words: &[&str], directory: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--name=bench",
        "--output-format=json",
        "--ioengine=psync",
        "--fallocate=none",
        "--thread",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--size={FILE_SIZE}"));
    arguments.push(format!("--directory={}", directory.display()));
    arguments.extend(words.iter().map(|word| (*word).to_owned()));
    arguments
}

fn on_host(arguments: &[String]) -> anyhow::Result<Value> {
    let done = Command::new(FIO).args(arguments).output()?;
    ensure!(
        done.status.success(),
        "fio on the host: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    parse(&String::from_utf8(done.stdout)?)
}

fn in_pod(daemon: &Daemon, pod: &str, arguments: &[String]) -> anyhow::Result<Value> {
    let mut command = vec!["exec", pod, "--", FIO];
    command.extend(arguments.iter().map(String::as_str));
    parse(&daemon.cli(command)?.ok()?)
}

/// Its report; notes come before it.
fn parse(output: &str) -> anyhow::Result<Value> {
    let start = output.find('{').context("fio said no JSON")?;
    let report: Value = serde_json::from_str(&output[start..])?;
    let job = report["jobs"][0].clone();
    ensure!(job["error"] == 0, "fio failed: {job:#}");
    Ok(job)
}

/// Operations a second.
fn rate(job: &Value) -> anyhow::Result<f64> {
    let rates = ["read", "write"].map(|way| job[way]["iops"].as_f64().unwrap_or_default());
    let rate = rates[0] + rates[1];
    ensure!(rate > 0.0, "fio did nothing: {job:#}");
    Ok(rate)
}

/// Creating and starting a container with one mount and with many.
pub(crate) fn mounts(engine: &str, runs: usize) -> anyhow::Result<Vec<Section>> {
    let host = tempfile::tempdir()?;
    let daemon = daemon(engine, host.path())?;
    let logs = daemon.dir().join("mount-logs");
    fs::create_dir_all(&logs)?;
    let directories: Vec<PathBuf> = (0..MOUNTS)
        .map(|n| host.path().join(format!("m{n}")))
        .collect();
    for directory in &directories {
        fs::create_dir_all(directory)?;
    }
    let sandbox = sandbox_config("mounts", &logs);
    let cri = Cri::connect(&daemon)?;
    let pod = cri.run(&sandbox)?;
    let start = |name: String, count: usize| {
        let mounts = directories.iter().take(count).enumerate();
        let config = v1::ContainerConfig {
            mounts: mounts
                .map(|(n, directory)| v1::Mount {
                    host_path: directory.display().to_string(),
                    container_path: format!("/m{n}"),
                    ..v1::Mount::default()
                })
                .collect(),
            ..container_config(&name, "sleep 100000")
        };
        let clock = Instant::now();
        let id = cri.create(&pod, config, &sandbox)?;
        cri.start(&id)?;
        let took = clock.elapsed().as_secs_f64() * 1e3;
        cri.stop(&id, 0)?;
        cri.remove(&id)?;
        anyhow::Ok(took)
    };
    let mut collected = Collected::default();
    for run in 0..=runs {
        let (few, many) = (
            start(format!("few-{run}"), 1)?,
            start(format!("many-{run}"), MOUNTS)?,
        );
        if run > 0 {
            collected.add("container with 1 mount", few);
            collected.add(&format!("container with {MOUNTS} mounts"), many);
            let more = u32::try_from(MOUNTS - 1).unwrap_or(u32::MAX);
            collected.add("each mount more", (many - few) / f64::from(more));
        }
    }
    cri.remove_pod(&pod)?;
    Ok(vec![collected.section(
        "create and start a container with host directories, ms",
    )])
}
