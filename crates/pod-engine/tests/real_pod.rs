//! Pods through the engine's own API, in real VMs under the qemu engine: what
//! `cargo xtask setup` builds must be there, otherwise the tests say so and pass.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use image_store::ImageStore;
use pod_engine::{Config, ContainerState, Phase, Pod, PodEngine};
use sandbox::{Engine, Sandboxes};
use state_store::StateStore;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use vm_launcher::Launcher;

const IMAGE: &str = "localhost/busybox:test";
/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(240);

/// QEMU, as it is quick everywhere; kvm on demand.
fn engine() -> Engine {
    match std::env::var("SPHERULE_TEST_ENGINE").as_deref() {
        Ok("kvm") => Engine::Kvm,
        _ => Engine::Qemu,
    }
}

/// What a test needs of the build, or `None` with a message.
fn built() -> Option<(PathBuf, PathBuf)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let vmm = std::env::current_exe()
        .ok()?
        .parent()?
        .parent()?
        .join("spherule-vmm");
    let guest = top.join("target/guest");
    let needed = [
        vmm.clone(),
        guest.join("vmlinux"),
        guest.join("initramfs.cpio"),
    ];
    for path in &needed {
        if !path.exists() {
            println!(
                "skipped: {} is not built (cargo xtask setup)",
                path.display()
            );
            return None;
        }
    }
    let probe = Launcher::new(&vmm).probe().ok()?;
    if !probe.qemu.usable {
        println!("skipped: no QEMU: {}", probe.qemu.detail);
        return None;
    }
    Some((vmm, guest))
}

/// Ends the VMMs of a test's directory with the test, also one that failed: they
/// outlive the process that started them.
struct Vmms(PathBuf);

impl Vmms {
    fn of(dir: &TempDir) -> Self {
        Self(dir.path().canonicalize().unwrap())
    }

    fn pids(&self) -> Vec<rustix::process::Pid> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten();
        let ours = processes.filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            let works_in = std::fs::read_link(path.join("cwd")).ok()?;
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            let ours = name.trim() == "spherule-vmm" && works_in.starts_with(&self.0);
            ours.then(|| rustix::process::Pid::from_raw(pid))?
        });
        ours.collect()
    }
}

impl Drop for Vmms {
    fn drop(&mut self) {
        for pid in self.pids() {
            // QEMU dies with it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A daemon's insides, with directories of their own.
struct Node {
    /// Before the directory, by which it finds them.
    _vmms: Vmms,
    dir: TempDir,
    engine: PodEngine,
    sandboxes: Sandboxes,
}

impl Node {
    async fn new(vmm: &Path, guest: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("pods-").tempdir().unwrap();
        Self::on(dir, vmm, guest).await
    }

    async fn on(dir: TempDir, vmm: &Path, guest: &Path) -> Self {
        let vmms = Vmms::of(&dir);
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .try_init();
        let root = dir.path().join("root");
        let state = StateStore::open(&root.join("state.redb")).unwrap();
        let images = ImageStore::open(&root, state.clone(), Default::default()).unwrap();
        let archive = test_images::busybox_image(IMAGE)
            .unwrap()
            .archive()
            .unwrap();
        images.import(archive.as_slice(), None).unwrap();
        let (engine, sandboxes) = open(dir.path(), vmm, guest, state, images).await;
        Self {
            _vmms: vmms,
            dir,
            engine,
            sandboxes,
        }
    }

    async fn run(&self, spec: &str) -> String {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{spec}");
        let pod = self
            .engine
            .run_pod(&text.replace("IMAGE", IMAGE), None)
            .await
            .unwrap();
        pod.id.clone()
    }

    async fn wait(&self, id: &str, what: &str, such: impl Fn(&Pod) -> bool) -> Arc<Pod> {
        let mut watch = self.engine.watch(id).unwrap();
        let found = tokio::time::timeout(PATIENCE, watch.wait_for(|pod| such(pod))).await;
        match found {
            Ok(Ok(pod)) => Arc::clone(&pod),
            _ => panic!("never {what}: {:#?}", self.engine.get(id)),
        }
    }

    async fn wait_over(&self, id: &str) -> Arc<Pod> {
        self.wait(id, "over", |pod| pod.phase.is_final()).await
    }

    /// The lines of a container's newest log, stream and tag kept, times not.
    fn log(&self, id: &str, container: &str) -> Vec<String> {
        let files = self.engine.log_files(id, container).unwrap();
        let path = &files.files.last().unwrap().path;
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .map(|line| {
                line.split_once(' ')
                    .map_or(line, |(_, rest)| rest)
                    .to_owned()
            })
            .collect()
    }
}

async fn open(
    dir: &Path,
    vmm: &Path,
    guest: &Path,
    state: StateStore,
    images: ImageStore,
) -> (PodEngine, Sandboxes) {
    let root = dir.join("root");
    let config = sandbox::Config::new(
        &root,
        dir.join("run"),
        guest.join("vmlinux"),
        guest.join("initramfs.cpio"),
        Launcher::new(vmm),
        engine(),
    );
    let sandboxes = Sandboxes::open(config, &state, images.clone())
        .await
        .unwrap();
    let mut config = Config::new(&root);
    config.restart_backoff.base = Duration::from_millis(50);
    config.network = false;
    let engine = PodEngine::open(sandboxes.clone(), images, &state, config)
        .await
        .unwrap();
    (engine, sandboxes)
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_runs_to_its_end_with_output_and_code() {
    let Some((vmm, guest)) = built() else { return };
    let node = Node::new(&vmm, &guest).await;
    let id = node
        .run(
            "  restartPolicy: Never\n  volumes: [{name: v, emptyDir: {}}]\n  initContainers:\n  - {name: i, image: IMAGE, command: [sh, -c, 'echo page > /v/page; id -u'], volumeMounts: [{name: v, mountPath: /v}]}\n  containers:\n  - {name: a, image: IMAGE, command: [sh, -c, 'cat /v/page; hostname; echo bad >&2; exit 3'], volumeMounts: [{name: v, mountPath: /v}]}\n  - {name: b, image: IMAGE, command: [echo], args: ['$(X)'], env: [{name: X, value: hello}]}\n",
        )
        .await;
    let pod = node.wait_over(&id).await;
    for stage in &pod.stages {
        println!(
            "{:>10.1} ms  {}",
            stage.duration_ns as f64 / 1e6,
            stage.name
        );
    }
    assert_eq!(pod.phase, Phase::Failed, "{pod:#?}");
    let (a, b) = (&pod.containers[0], &pod.containers[1]);
    assert_eq!((a.exit_code, a.reason.as_str()), (3, "Error"), "{pod:#?}");
    assert_eq!((b.exit_code, b.reason.as_str()), (0, "Completed"));
    assert_eq!(node.log(&id, "i"), ["stdout F 0"]);
    let mut lines = node.log(&id, "a");
    lines.sort();
    assert_eq!(lines, ["stderr F bad", "stdout F p", "stdout F page"]);
    assert_eq!(node.log(&id, "b"), ["stdout F hello"]);
    node.engine.remove(&id, false).await.unwrap();
    assert!(node.engine.list(&Default::default()).is_empty());
    assert!(node.sandboxes.sandboxes().is_empty());
    for sub in ["root/pods", "root/logs", "run/pods"] {
        assert_eq!(
            std::fs::read_dir(node.dir.path().join(sub))
                .unwrap()
                .count(),
            0,
            "{sub}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_restarts_stops_and_dies_with_its_vm() {
    let Some((vmm, guest)) = built() else { return };
    let node = Node::new(&vmm, &guest).await;
    let id = node
        .run(
            "  restartPolicy: OnFailure\n  containers:\n  - {name: once, image: IMAGE, command: [sh, -c, 'exit 4']}\n  - {name: long, image: IMAGE, command: [sh, -c, 'echo up; exec sleep 1000']}\n",
        )
        .await;
    let twice = |pod: &Pod| pod.containers[0].restart_count >= 2;
    let pod = node.wait(&id, "restarted twice", twice).await;
    let long = &pod.containers[1];
    assert_eq!(
        (long.state, long.restart_count),
        (ContainerState::Running, 0)
    );
    assert_eq!(node.log(&id, "long"), ["stdout F up"]);

    // Its VM is killed: the pod gets another one.
    let pid = pod.vm.unwrap().vmm_pid;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let again = |pod: &Pod| {
        let long = &pod.containers[1];
        long.restart_count == 1 && long.state == ContainerState::Running
    };
    node.wait(&id, "in a new VM", again).await;

    let pod = node
        .engine
        .stop(&id, Some(Duration::from_secs(0)))
        .await
        .unwrap();
    assert_eq!((pod.phase, pod.reason.as_str()), (Phase::Failed, "Stopped"));
    assert_eq!(pod.containers[1].exit_code, 137);
    node.engine.remove(&id, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_tells_how_its_vmm_was_ended() {
    use rustix::process::Signal;
    let Some((vmm, guest)) = built() else { return };
    let node = Node::new(&vmm, &guest).await;
    for (signal, told) in [
        (Signal::TERM, "the signal SIGTERM"),
        (Signal::KILL, "killed or crashed without a record"),
    ] {
        let spec = "  restartPolicy: Never\n  containers:\n  - {name: a, image: IMAGE, command: [sleep, '900']}\n";
        let id = node.run(spec).await;
        let running = |pod: &Pod| pod.phase == Phase::Running;
        let pod = node.wait(&id, "running", running).await;
        let pid = i32::try_from(pod.vm.unwrap().vmm_pid).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let pod = node.wait_over(&id).await;
        let container = &pod.containers[0];
        assert_eq!(
            (container.exit_code, container.reason.as_str()),
            (137, "VmDied")
        );
        assert!(container.message.contains(told), "{}", container.message);
        node.engine.remove(&id, false).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_is_announced_while_children_hold_the_output_open() {
    let Some((vmm, guest)) = built() else { return };
    let node = Node::new(&vmm, &guest).await;
    let id = node
        .run(
            "  restartPolicy: Never\n  containers:\n  - {name: a, image: IMAGE, command: [sh, -c, 'sleep 900 & echo a; exit 3']}\n  - {name: b, image: IMAGE, command: [sh, -c, 'setsid sleep 900 & echo b; exit 4']}\n",
        )
        .await;
    let pod = node.wait_over(&id).await;
    for (container, code) in pod.containers.iter().zip([3, 4]) {
        assert_eq!(
            (container.exit_code, container.message.as_str()),
            (code, "")
        );
        let line = format!("stdout F {}", container.name);
        assert_eq!(node.log(&id, &container.name), [line]);
    }
    node.engine.remove(&id, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_in_a_shared_pid_namespace_waits_for_no_other_container() {
    let Some((vmm, guest)) = built() else { return };
    let node = Node::new(&vmm, &guest).await;
    // The second container opens the first one's output and keeps it.
    let id = node
        .run(
            "  restartPolicy: Never\n  shareProcessNamespace: true\n  containers:\n  - {name: a, image: IMAGE, command: [sh, -c, 'setsid sleep 900 & echo a; until [ -e /v/held ]; do sleep 0.1; done; echo end; exit 3', first], volumeMounts: [{name: v, mountPath: /v}]}\n  - {name: b, image: IMAGE, command: [sh, -c, 'for p in $(pidof sh); do if grep -q first /proc/$p/cmdline; then exec 3>/proc/$p/fd/1; fi; done; echo held >&3; touch /v/held; exec sleep 900', second], volumeMounts: [{name: v, mountPath: /v}]}\n  volumes: [{name: v, emptyDir: {}}]\n",
        )
        .await;
    let ended = |pod: &Pod| pod.containers[0].state == ContainerState::Terminated;
    let pod = node.wait(&id, "seen to have ended", ended).await;
    // Complete, by silence: a wait to its limit would say that it may not be.
    assert_eq!(pod.containers[0].message, "");
    assert_eq!(pod.containers[0].exit_code, 3);
    assert_eq!(
        node.log(&id, "a"),
        ["stdout F a", "stdout F held", "stdout F end"]
    );
    node.engine.remove(&id, true).await.unwrap();
}

/// Set for the process that plays the daemon that will be killed.
const CHILD: &str = "SPHERULE_TEST_DAEMON_DIR";

#[tokio::test(flavor = "multi_thread")]
async fn pod_goes_on_without_its_daemon_and_is_known_to_the_next() {
    let Some((vmm, guest)) = built() else { return };
    if let Ok(dir) = std::env::var(CHILD) {
        return daemon_to_be_killed(Path::new(&dir), &vmm, &guest).await;
    }
    let dir = tempfile::Builder::new().prefix("pods-").tempdir().unwrap();
    let first_daemons = Vmms::of(&dir);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "pod_goes_on_without_its_daemon_and_is_known_to_the_next",
        ])
        .env(CHILD, dir.path())
        .spawn()
        .unwrap();
    let id_file = dir.path().join("id");
    let begun = tokio::time::Instant::now();
    while !id_file.exists() {
        assert!(begun.elapsed() < PATIENCE, "the pod never ran");
        assert!(
            child.try_wait().unwrap().is_none(),
            "the first daemon ended"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let id = std::fs::read_to_string(&id_file).unwrap();
    // What a daemon killed in the middle of something leaves.
    std::fs::create_dir_all(dir.path().join("run/pods/stray")).unwrap();
    // One container ends while there is no daemon, one goes on.
    tokio::time::sleep(Duration::from_secs(4)).await;

    let node = Node::on(dir, &vmm, &guest).await;
    // They are the node's from here on.
    std::mem::forget(first_daemons);
    assert!(!node.dir.path().join("run/pods/stray").exists());
    let ended = |pod: &Pod| pod.containers[0].state == ContainerState::Terminated;
    let pod = node
        .wait(&id, "seen to have ended one container", ended)
        .await;
    assert_eq!(pod.containers[0].exit_code, 5, "{pod:#?}");
    assert_eq!(node.log(&id, "short"), ["stdout F one", "stdout F two"]);
    let long = &pod.containers[1];
    assert_eq!(
        (long.state, long.restart_count),
        (ContainerState::Running, 0)
    );
    let pod = node.engine.stop(&id, Some(Duration::ZERO)).await.unwrap();
    assert_eq!(pod.containers[1].exit_code, 137);
    node.engine.remove(&id, false).await.unwrap();
    assert!(node.sandboxes.sandboxes().is_empty());
}

/// Runs a pod, says its id in a file, and waits for its end.
async fn daemon_to_be_killed(dir: &Path, vmm: &Path, guest: &Path) {
    let root = dir.join("root");
    let state = StateStore::open(&root.join("state.redb")).unwrap();
    let images = ImageStore::open(&root, state.clone(), Default::default()).unwrap();
    let archive = test_images::busybox_image(IMAGE)
        .unwrap()
        .archive()
        .unwrap();
    images.import(archive.as_slice(), None).unwrap();
    let (engine, _sandboxes) = open(dir, vmm, guest, state, images).await;
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: short, image: '{IMAGE}', command: [sh, -c, 'echo one; sleep 2; echo two; exit 5']}}\n  - {{name: long, image: '{IMAGE}', command: [sleep, '1000']}}\n"
    );
    let pod = engine.run_pod(&text, None).await.unwrap();
    let mut watch = engine.watch(&pod.id).unwrap();
    watch
        .wait_for(|pod| pod.phase == Phase::Running)
        .await
        .unwrap();
    std::fs::write(dir.join("id.new"), &pod.id).unwrap();
    std::fs::rename(dir.join("id.new"), dir.join("id")).unwrap();
    std::future::pending::<()>().await;
}
