//! A kubelet's emptyDirs: where their bytes live, and what the node sees of them.

use crate::Test;
use crate::inside::{INSIDE, checksum, program_files};
use anyhow::{Context, ensure};
use cri_api::v1;
use rustix::process::{Signal, kill_process};
use spherule_tests::cri::{Cri, container_config, sandbox_config};
use spherule_tests::{Daemon, DaemonOptions};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("bytes_are_on_a_disk_that_the_node_measures", disk),
    ("data_outlive_vm_and_daemon", kills),
    ("a_directory_in_use_is_shared", shared),
    ("they_keep_what_posix_promises", posix),
];

/// Where mounts can be made for a daemon.
pub(crate) const MOUNTS: &[Test] = &[
    ("sub_paths_are_those_of_the_same_disk", sub_paths),
    ("medium_memory_is_the_guests_memory", memory),
];

/// What the disk is in its directory.
const FILE: &str = ".spherule-emptydir.ext4";
/// What an empty disk may take that was in use. A journal alone is 4 MiB.
const EMPTY: u64 = 2 << 20;
/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A pod's directory as a kubelet lays it out.
fn pod_dir(kubelet: &Path, name: &str) -> PathBuf {
    kubelet.join("pods").join(format!("uid-{name}"))
}

fn empty_dir(kubelet: &Path, pod: &str, volume: &str) -> anyhow::Result<PathBuf> {
    let dir = pod_dir(kubelet, pod)
        .join("volumes/kubernetes.io~empty-dir")
        .join(volume);
    fs::create_dir_all(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
    Ok(dir)
}

fn mount(host: &Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..v1::Mount::default()
    }
}

/// A pod and its client.
struct Pod {
    cri: Cri,
    id: String,
    config: v1::PodSandboxConfig,
}

impl Pod {
    fn run(daemon: &Daemon, name: &str, attempt: u32) -> anyhow::Result<Self> {
        let mut config = sandbox_config(name, &daemon.dir().join("logs"));
        config.metadata.as_mut().context("no metadata")?.attempt = attempt;
        Self::of(daemon, config)
    }

    fn of(daemon: &Daemon, config: v1::PodSandboxConfig) -> anyhow::Result<Self> {
        let cri = Cri::connect(daemon)?;
        let id = cri.run(&config)?;
        Ok(Self { cri, id, config })
    }

    /// A container of that user.
    fn container(&self, name: &str, uid: i64, mounts: Vec<v1::Mount>) -> anyhow::Result<String> {
        let linux = v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                run_as_user: Some(v1::Int64Value { value: uid }),
                ..v1::LinuxContainerSecurityContext::default()
            }),
            ..v1::LinuxContainerConfig::default()
        };
        let config = v1::ContainerConfig {
            mounts,
            linux: Some(linux),
            ..container_config(name, "sleep 100000")
        };
        let id = self.cri.create(&self.id, config, &self.config)?;
        self.cri.start(&id)?;
        Ok(id)
    }

    /// What a script writes, which must succeed.
    fn out(&self, container: &str, script: &str) -> anyhow::Result<String> {
        let done = self.cri.exec(container, &["sh", "-c", script])?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(done.exit_code == 0, "{script}: {stderr}");
        Ok(String::from_utf8(done.stdout)?)
    }

    fn end(self) -> anyhow::Result<()> {
        self.cri.remove_pod(&self.id)?;
        Ok(())
    }
}

/// What is in a directory of the host.
fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into()));
    names.collect()
}

/// Bytes that it takes, as a kubelet measures them.
fn taken(dir: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(dir.join(FILE))?.blocks() * 512)
}

/// Waits until it takes what `holds` says.
fn wait_taken(dir: &Path, holds: impl Fn(u64) -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds(taken(dir)?) {
        ensure!(started.elapsed() < PATIENCE, "takes {}", taken(dir)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn disk() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let kubelet = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
    let cache = empty_dir(kubelet.path(), "empty-dirs", "cache")?;
    let group = empty_dir(kubelet.path(), "empty-dirs", "group")?;
    chown(&group, None, Some(4321))?;
    fs::set_permissions(&group, fs::Permissions::from_mode(0o2775))?;
    let pod = Pod::run(&daemon, "empty-dirs", 0)?;
    let mounts = || vec![mount(&cache, "/cache"), mount(&group, "/group")];
    let first = pod.container("first", 0, mounts())?;
    // As empty as the kubelet made it, and whose it was.
    let look = "ls -A /cache /group && stat -c %a:%u:%g /cache /group";
    let want = "/cache:\n\n/group:\n777:0:0\n2775:0:4321\n";
    ensure!(pod.out(&first, look)? == want, "{}", pod.out(&first, look)?);
    ensure!(names(&cache)? == [FILE]);
    ensure!(taken(&cache)? < 1 << 20, "{} at first", taken(&cache)?);
    let room: u64 = pod
        .out(&first, "df -k /cache | awk 'END { print $2 }'")?
        .trim()
        .parse()?;
    let node = rustix::fs::statvfs(&cache)?;
    let node = node.f_blocks * node.f_frsize;
    ensure!(
        (room << 10) > node.min(1 << 40) / 20 * 19,
        "{room} KiB of {node}"
    );

    let write = "dd if=/dev/urandom of=/cache/data bs=1M count=24 2>/dev/null && sync && sha256sum </cache/data";
    let sum = pod.out(&first, write)?;
    wait_taken(&cache, |bytes| {
        (24 << 20..(24 << 20) + EMPTY).contains(&bytes)
    })?;
    // Each of these writes to the journal.
    let beats = "for i in $(seq 300); do echo $i >/cache/beat; sync /cache/beat; done";
    pod.out(&first, beats)?;
    let second = pod.container("second", 1000, mounts())?;
    ensure!(pod.out(&second, "sha256sum </cache/data")? == sum);
    pod.out(
        &first,
        "touch /group/f && ln -s /etc /cache/link && mkfifo /cache/pipe",
    )?;
    ensure!(pod.out(&second, "stat -c %g /group/f")? == "4321\n");
    ensure!(pod.cri.exec(&second, &["touch", "/group/mine"])?.exit_code != 0);

    // The other container keeps it; what is deleted is the node's again.
    pod.cri.stop(&first, 0)?;
    pod.cri.remove(&first)?;
    pod.out(&second, "rm /cache/data && sync")?;
    wait_taken(&cache, |bytes| bytes < EMPTY)?;
    let again = pod.container("again", 0, mounts())?;
    ensure!(pod.out(&again, "readlink /cache/link")? == "/etc\n");
    for container in [&second, &again] {
        pod.cri.remove(container)?;
    }
    // It was nobody's for a while.
    let last = pod.container("last", 0, mounts())?;
    ensure!(pod.out(&last, "readlink /cache/link")? == "/etc\n");
    pod.end()?;
    // The directory is the kubelet's to remove.
    ensure!(names(&cache)? == [FILE]);
    Ok(())
}

fn kills() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let kubelet = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
    let cache = empty_dir(kubelet.path(), "empty-dirs-kills", "cache")?;
    let pod = Pod::run(&daemon, "empty-dirs-kills", 0)?;
    let first = pod.container("first", 0, vec![mount(&cache, "/cache")])?;
    pod.out(&first, "echo kept >/cache/file && chmod 700 /cache && sync")?;
    daemon.kill()?;
    daemon.restart()?;
    let pod = Pod {
        cri: Cri::connect(&daemon)?,
        ..pod
    };
    let second = pod.container("second", 0, vec![mount(&cache, "/cache")])?;
    ensure!(pod.out(&second, "cat /cache/file")? == "kept\n");
    ensure!(pod.out(&first, "cat /cache/file")? == "kept\n");
    // While it is written to.
    pod.out(
        &first,
        "(while :; do echo $RANDOM >>/cache/busy; done) >/dev/null 2>&1 & true",
    )?;
    kill_process(pod.cri.vmm(&pod.id)?, Signal::KILL)?;
    pod.cri.stop_pod(&pod.id)?;

    // The kubelet makes another sandbox for the same pod.
    let next = Pod::run(&daemon, "empty-dirs-kills", 1)?;
    let container = next.container("third", 0, vec![mount(&cache, "/cache")])?;
    let look = "cat /cache/file && stat -c %a /cache";
    ensure!(next.out(&container, look)? == "kept\n700\n");
    next.out(&container, "echo more >>/cache/file && sync")?;
    next.end()?;
    pod.end()?;
    ensure!(names(&cache)? == [FILE]);
    Ok(())
}

fn shared() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let kubelet = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
    let used = empty_dir(kubelet.path(), "empty-dirs-shared", "used")?;
    fs::write(used.join("file"), "of the node\n")?;
    let planted = empty_dir(kubelet.path(), "empty-dirs-shared", "planted")?;
    let secret = kubelet.path().join("secret");
    fs::write(&secret, vec![1; 1 << 20])?;
    symlink(&secret, planted.join(FILE))?;
    // Of another pod: not this one's to have as a disk.
    let foreign = empty_dir(kubelet.path(), "another", "v")?;
    let pod = Pod::run(&daemon, "empty-dirs-shared", 0)?;
    let mounts = || {
        vec![
            mount(&used, "/used"),
            mount(&planted, "/planted"),
            mount(&foreign, "/foreign"),
        ]
    };
    let first = pod.container("first", 0, mounts())?;
    ensure!(pod.out(&first, "cat /used/file")? == "of the node\n");
    pod.out(
        &first,
        "rm /used/file && echo a >/planted/a && echo b >/foreign/b",
    )?;
    ensure!(fs::read_to_string(planted.join("a"))? == "a\n");
    ensure!(names(&foreign)? == ["b"]);
    // Empty by now, and still what the first container has.
    let second = pod.container("second", 0, mounts())?;
    pod.out(&first, "echo new >/used/new")?;
    ensure!(pod.out(&second, "cat /used/new")? == "new\n");
    ensure!(fs::read_to_string(used.join("new"))? == "new\n");
    ensure!(fs::read(&secret)? == vec![1; 1 << 20]);
    pod.end()
}

/// The checks of `storage.rs`, on a disk of the kubelet's and on one that is shared.
fn posix() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let kubelet = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
    let disk = empty_dir(kubelet.path(), "empty-dirs-posix", "disk")?;
    let shared = empty_dir(kubelet.path(), "empty-dirs-posix", "shared")?;
    fs::write(shared.join("file"), "of the node\n")?;
    let pod = Pod::run(&daemon, "empty-dirs-posix", 0)?;
    let mounts = || {
        let mut mounts = vec![mount(&disk, "/disk"), mount(&shared, "/shared")];
        for (path, place) in program_files()? {
            let file = mount(&path, &place);
            mounts.push(v1::Mount {
                readonly: true,
                ..file
            });
        }
        Ok::<_, anyhow::Error>(mounts)
    };
    let root = pod.container("root", 0, mounts()?)?;
    let user = pod.container("user", 1000, mounts()?)?;
    let inside = |container: &str, command: &str| {
        let script = format!("/t/test {INSIDE} {command} /disk /shared 2>&1");
        let done = pod
            .cri
            .exec_within(container, &["sh", "-c", &script], 280)?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(done.exit_code == 0, "{script}: {said}");
        Ok(said)
    };
    inside(&root, "posix")?;
    let said = inside(&root, "fsx 600 1")?;
    ensure!(said.matches("600 operations").count() == 2, "{said}");
    let sum = checksum(&fs::read(shared.join("fsx"))?);
    ensure!(said.contains(&format!("{sum:016x}")), "{said}");
    // What root left is there, and so are its rights.
    inside(&user, "posix")?;
    ensure!(names(&disk)? == [FILE]);
    pod.end()
}

/// A daemon for whom `script` mounts in its own mount namespace; `$p` is the pod's
/// directory there.
fn with_mounts(pod: &str, script: &str) -> anyhow::Result<(Daemon, PathBuf)> {
    let prepare = format!(
        "p=$d/pods/uid-{pod}; e=$p/volumes/kubernetes.io~empty-dir; s=$p/volume-subpaths; {script}"
    );
    let daemon = Daemon::with(DaemonOptions {
        prepare: Some(prepare),
        ..DaemonOptions::default()
    })?;
    let dir = pod_dir(daemon.dir(), pod);
    Ok((daemon, dir))
}

fn sub_paths() -> anyhow::Result<()> {
    // As a kubelet: what a subPath names is made on the host, then bound.
    let (daemon, dir) = with_mounts(
        "empty-dirs-sub",
        "mkdir -p $e/v/a/b $e/v/conf $s/v/c/0 $s/v/c/1 && chmod 777 $e/v && \
         mount --bind $e/v/a/b $s/v/c/0 && mount --bind $e/v/conf $s/v/c/1",
    )?;
    let whole = dir.join("volumes/kubernetes.io~empty-dir/v");
    let bound = |number: u32| dir.join(format!("volume-subpaths/v/c/{number}"));
    let range = |id| v1::IdMapping {
        host_id: id,
        container_id: 0,
        length: 65536,
    };
    let mut config = sandbox_config("empty-dirs-sub", &daemon.dir().join("logs"));
    // Users of a namespace of the pod: what is made is theirs.
    config.linux.as_mut().context("no linux")?.security_context =
        Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(v1::NamespaceOption {
                userns_options: Some(v1::UserNamespace {
                    mode: v1::NamespaceMode::Pod.into(),
                    uids: vec![range(100_000)],
                    gids: vec![range(100_000)],
                }),
                ..v1::NamespaceOption::default()
            }),
            ..v1::LinuxSandboxSecurityContext::default()
        });
    let pod = Pod::of(&daemon, config)?;
    let mapped = |host: &Path, container: &str| v1::Mount {
        uid_mappings: vec![range(100_000)],
        gid_mappings: vec![range(100_000)],
        ..mount(host, container)
    };
    // The sub-path comes first, for a user that is not root.
    let first = pod.container("first", 1000, vec![mapped(&bound(0), "/sub")])?;
    ensure!(pod.out(&first, "stat -c %a:%u:%g /sub")? == "777:0:0\n");
    pod.out(&first, "echo below >/sub/file")?;
    let second = pod.container("second", 0, vec![mapped(&whole, "/v")])?;
    ensure!(pod.out(&second, "cat /v/a/b/file && stat -c %u /v/a/b/file")? == "below\n1000\n");
    pod.out(&second, "echo text >/v/conf")?;
    // A file by now, though the kubelet, who cannot know, made a directory for it.
    let both = vec![mapped(&bound(1), "/etc/conf"), mapped(&whole, "/v")];
    let third = pod.container("third", 1000, both)?;
    ensure!(pod.out(&third, "cat /etc/conf")? == "text\n");
    pod.out(&second, "echo more >>/v/conf")?;
    ensure!(pod.out(&third, "cat /etc/conf")? == "text\nmore\n");
    pod.end()
}

fn memory() -> anyhow::Result<()> {
    let (daemon, dir) = with_mounts(
        "empty-dirs-memory",
        "mkdir -p $e/m $e/none $s/m/c/0 && mount -t tmpfs -o size=4m,mode=0777 t $e/m && \
         mkdir $e/m/sub && mount --bind $e/m/sub $s/m/c/0",
    )?;
    let whole = dir.join("volumes/kubernetes.io~empty-dir/m");
    let pod = Pod::run(&daemon, "empty-dirs-memory", 0)?;
    let first = pod.container("first", 1000, vec![mount(&whole, "/dev/shm")])?;
    ensure!(pod.out(&first, "stat -f -c %T /dev/shm")? == "tmpfs\n");
    ensure!(pod.out(&first, "stat -c %a /dev/shm")? == "777\n");
    pod.out(
        &first,
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=3 2>/dev/null",
    )?;
    let more = pod.cri.exec(
        &first,
        &["dd", "if=/dev/zero", "of=/dev/shm/y", "bs=1M", "count=3"],
    )?;
    let stderr = String::from_utf8_lossy(&more.stderr);
    ensure!(stderr.contains("No space"), "{stderr}");
    let bound = vec![
        mount(&dir.join("volume-subpaths/m/c/0"), "/sub"),
        mount(&whole, "/m"),
    ];
    let second = pod.container("second", 1000, bound)?;
    pod.out(&second, "rm /m/y && echo here >/sub/file")?;
    // It is the pod's, not a container's.
    for container in [&first, &second] {
        pod.cri.remove(container)?;
    }
    let third = pod.container("third", 0, vec![mount(&whole, "/m")])?;
    ensure!(pod.out(&third, "cat /m/sub/file && stat -c %s /m/x")? == "here\n3145728\n");
    pod.end()
}
