//! Files: fio on each kind of mount of a pod, and the same work on the host's file
//! system right before it; what one more mount costs at a container's start.
//!
//! The work is buffered, as that of most programs: what a page cache does for the
//! host it may do for the guest. On virtio-fs it never does (nothing is cached in
//! the guest). Rows named "direct" go around it.

use crate::report::{Collected, Section};
use crate::{many_files, start};
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::{Value, json};
use spherule_tests::cri::{Cri, container_config, sandbox_config};
use spherule_tests::manifest::{container, documents, pod};
use spherule_tests::{Daemon, DaemonOptions};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use test_images::{Compression, Layer, busybox_image, noise};

/// fio's program.
const FIO: &str = "/usr/bin/fio";
const IMAGE: &str = "localhost/fio:1";
/// Bytes of the file that is worked on.
const FILE_SIZE: usize = 32 << 20;
/// Bytes of the block volume.
const BLOCK_SIZE: u64 = 1 << 30;
/// Seconds of each run of fio.
const SECONDS: &str = "2";
/// Where the image has this program.
const THIS: &str = "/bin/bench";
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
/// Kinds of mounts, and where the container has them.
const MOUNTED: &[(&str, &str)] = &[
    ("image root", "/data"),
    ("scratch disk", "/disk"),
    ("block volume", "/block"),
    ("virtio-fs", "/share"),
    ("kubelet's emptyDir", "/kubelet"),
];

/// A daemon whose pods may have what lies in that directory.
fn daemon(engine: &str, host: &Path) -> anyhow::Result<Daemon> {
    Daemon::with(DaemonOptions {
        engine: engine.into(),
        ..DaemonOptions::allowing(host)
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
    let kubelet = KubeletPod::start(&daemon, host.path())?;
    let in_pod = |directory: &str, command: &[String]| {
        if directory == "/kubelet" {
            return kubelet.exec(command);
        }
        let words = command.iter().map(String::as_str);
        daemon
            .cli(["exec", &id, "--"].into_iter().chain(words))?
            .ok()
    };
    for (name, words) in WORK {
        eprintln!("files: {name}");
        let host_rate = rate(&on_host(&fio(words, &own))?)?;
        host_rates.add(name, host_rate);
        for ((_, directory), share) in MOUNTED.iter().zip(&mut shares) {
            let rate = rate(&in_pod(directory, &fio(words, Path::new(directory)))?)?;
            share.add(name, rate / host_rate * 100.0);
        }
    }
    eprintln!("files: many");
    let this = std::env::current_exe()?.display().to_string();
    let of_host = many_files::rates(&on_host(&many_files::command(&this, &own))?)?;
    for (name, rate) in &of_host {
        host_rates.add(name, *rate);
    }
    for ((_, directory), share) in MOUNTED.iter().zip(&mut shares) {
        let command = many_files::command(THIS, Path::new(directory));
        let rates = many_files::rates(&in_pod(directory, &command)?)?;
        for ((name, rate), (_, of_host)) in rates.iter().zip(&of_host) {
            share.add(name, rate / of_host * 100.0);
        }
    }
    daemon.cli(["rm", "--force", &id])?.ok()?;
    let mut sections = vec![host_rates.section("files on the host: operations a second")];
    for ((name, _), share) in MOUNTED.iter().zip(shares) {
        sections.push(share.section(&format!("files on the {name}: % of the host's rate")));
    }
    Ok(sections)
}

/// A pod that has an emptyDir as a kubelet gives it.
struct KubeletPod {
    cri: Cri,
    container: String,
}

impl KubeletPod {
    fn start(daemon: &Daemon, host: &Path) -> anyhow::Result<Self> {
        let logs = daemon.dir().join("kubelet-logs");
        fs::create_dir_all(&logs)?;
        let sandbox = sandbox_config("fio", &logs);
        let cri = Cri::connect(daemon)?;
        let pod = cri.run(&sandbox)?;
        let config = v1::ContainerConfig {
            image: Some(spherule_tests::cri::image(IMAGE)),
            mounts: vec![v1::Mount {
                host_path: empty_dir(host, "fio", 0)?.display().to_string(),
                container_path: "/kubelet".to_owned(),
                ..v1::Mount::default()
            }],
            ..container_config("c", "sleep 100000")
        };
        let container = cri.create(&pod, config, &sandbox)?;
        cri.start(&container)?;
        Ok(Self { cri, container })
    }

    fn exec(&self, command: &[String]) -> anyhow::Result<String> {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let done = self.cri.exec_within(&self.container, &words, 300)?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(done.exit_code == 0, "{command:?}: {stderr}");
        Ok(String::from_utf8(done.stdout)?)
    }
}

/// The directory of a pod's emptyDir, where a kubelet has it.
fn empty_dir(kubelet: &Path, pod: &str, number: usize) -> anyhow::Result<PathBuf> {
    let dir = format!("pods/uid-{pod}/volumes/kubernetes.io~empty-dir/v{number}");
    let dir = kubelet.join(dir);
    fs::create_dir_all(&dir)?;
    Ok(dir)
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

/// The image: fio and this program with their libraries, and a file to read.
fn import_fio(daemon: &Daemon) -> anyhow::Result<()> {
    let mut layer = Layer::default().dir("data", 0o755)?;
    layer = layer.file("data/file", 0o644, &noise(1, FILE_SIZE))?;
    let this = std::env::current_exe()?;
    let mut files = libraries(Path::new(FIO))?;
    files.extend(libraries(&this)?);
    files.extend([(FIO.into(), FIO.into()), (THIS.into(), this)]);
    for (place, path) in files {
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        let place = place.strip_prefix("/")?.display().to_string();
        layer = layer.file(&place, 0o755, &content)?;
    }
    let image = busybox_image(IMAGE)?.layer(layer.into_bytes()?, Compression::None);
    let archive = daemon.dir().join("fio.tar");
    fs::write(&archive, image.archive()?)?;
    daemon
        .cli(["import", archive.to_str().context("plain path")?])?
        .ok()?;
    Ok(())
}

/// A program's libraries, by where the loader looks for them.
fn libraries(program: &Path) -> anyhow::Result<BTreeMap<PathBuf, PathBuf>> {
    let listed = Command::new("ldd").arg(program).output()?;
    ensure!(listed.status.success(), "ldd {} failed", program.display());
    let listed = String::from_utf8(listed.stdout)?;
    let words = listed.split_ascii_whitespace();
    let paths = words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from);
    Ok(paths.map(|path| (path.clone(), path)).collect())
}

fn fio(words: &[&str], directory: &Path) -> Vec<String> {
    let mut command: Vec<String> = [
        FIO,
        "--name=bench",
        "--output-format=json",
        "--ioengine=psync",
        "--fallocate=none",
        "--thread",
        "--bs=4k",
        "--time_based",
        "--runtime",
        SECONDS,
    ]
    .map(str::to_owned)
    .to_vec();
    command.push(format!("--size={FILE_SIZE}"));
    // Holds for what is named after it.
    command.push(format!("--directory={}", directory.display()));
    command.push("--filename=file".to_owned());
    command.extend(words.iter().map(|word| (*word).to_owned()));
    command
}

/// What a command says on the host.
fn on_host(command: &[String]) -> anyhow::Result<String> {
    let done = Command::new(&command[0]).args(&command[1..]).output()?;
    ensure!(
        done.status.success(),
        "{command:?} on the host: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(String::from_utf8(done.stdout)?)
}

/// Operations a second, as fio reports them; notes come before its report.
fn rate(output: &str) -> anyhow::Result<f64> {
    let start = output.find('{').context("fio said no JSON")?;
    let report: Value = serde_json::from_str(&output[start..])?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio failed: {job:#}");
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
    let start = |name: String, directories: &[PathBuf]| {
        let mounts = directories.iter().enumerate();
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
        // Of its first container: its disk is made and attached.
        let new = empty_dir(host.path(), "mounts", run)?;
        let few = start(format!("few-{run}"), &directories[..1])?;
        let many = start(format!("many-{run}"), &directories)?;
        let new = start(format!("new-{run}"), &[new])?;
        if run > 0 {
            collected.add("container with a new emptyDir of a kubelet", new);
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
