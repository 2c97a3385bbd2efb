//! A daemon's sandboxes with directories of their own, and what ends their VMMs.

use image_store::ImageStore;
use sandbox::{
    Container, ContainerSpec, ContainerState, Engine, ExecInput, ExecOutput, ExecSession,
    ProcessSpec, ResourceSpec, SandboxSpec, Sandboxes,
};
use state_store::StateStore;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use test_images::{Compression, ImageBuilder, Layer};
use vm_launcher::Launcher;

pub(crate) const IMAGE: &str = "localhost/busybox:test";
/// An image to mount: `page/index.html`.
pub(crate) const PAGES: &str = "localhost/pages:test";
/// Only a test that fails waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

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
    let programs = std::env::current_exe().ok()?;
    let vmm = programs.parent()?.parent()?.join("spherule-vmm");
    let guest = top.join("target/guest");
    let needed = [
        vmm.clone(),
        guest.join("vmlinux"),
        guest.join("initramfs.cpio"),
    ];
    if let Some(path) = needed.iter().find(|path| !path.exists()) {
        println!(
            "skipped: {} is not built (cargo xtask setup)",
            path.display()
        );
        return None;
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

impl Drop for Vmms {
    fn drop(&mut self) {
        let processes = std::fs::read_dir("/proc").into_iter().flatten();
        for entry in processes.filter_map(Result::ok) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let ours = std::fs::read_link(entry.path().join("cwd"))
                .is_ok_and(|dir| dir.starts_with(&self.0));
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
                && ours
                && name.trim() == "spherule-vmm"
            {
                // QEMU dies with it.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub(crate) struct Node {
    /// Before the directory, by which it finds them.
    _vmms: Vmms,
    pub(crate) dir: TempDir,
    pub(crate) sandboxes: Sandboxes,
}

impl Node {
    /// `None` with a message where no VM can be made.
    pub(crate) async fn new(max_parallel_boots: usize) -> Option<Self> {
        let (vmm, guest) = built()?;
        let dir = tempfile::Builder::new().prefix("vms-").tempdir().unwrap();
        let vmms = Vmms(dir.path().canonicalize().unwrap());
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .try_init();
        let root = dir.path().join("root");
        let state = StateStore::open(&root.join("state.redb")).unwrap();
        let images = ImageStore::open(&root, state.clone(), Default::default()).unwrap();
        let busybox = test_images::busybox_image(IMAGE).unwrap();
        let pages = Layer::default().dir("page", 0o755).unwrap();
        let pages = pages.file("page/index.html", 0o644, b"hello\n").unwrap();
        let pages = ImageBuilder::new(PAGES).layer(pages.into_bytes().unwrap(), Compression::None);
        for image in [busybox, pages] {
            let archive = image.archive().unwrap();
            images.import(archive.as_slice(), None).unwrap();
        }
        let mut config = sandbox::Config::new(
            &root,
            dir.path().join("run"),
            guest.join("vmlinux"),
            guest.join("initramfs.cpio"),
            Launcher::new(vmm),
            engine(),
        );
        config.max_parallel_boots = max_parallel_boots;
        config.clock_check = Duration::from_secs(1);
        let sandboxes = Sandboxes::open(config, &state, images).await.unwrap();
        Some(Self {
            _vmms: vmms,
            dir,
            sandboxes,
        })
    }

    /// A small sandbox.
    pub(crate) fn spec(name: &str) -> SandboxSpec {
        SandboxSpec {
            id: sandbox::new_id(),
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: name.to_owned(),
            attempt: 0,
            labels: Default::default(),
            annotations: Default::default(),
            hostname: name.to_owned(),
            vcpus: 1,
            memory_mib: 160,
            engine: None,
            scratch_mib: Some(64),
            cgroup_parent: String::new(),
            share_process_namespace: false,
            user_namespace: None,
            sysctls: Default::default(),
            shm_size: 0,
            volumes: Vec::new(),
            shares: false,
            empty_dirs_inside: false,
            block_volumes: Vec::new(),
            volume_bays: 0,
            network: None,
            host_aliases: Vec::new(),
            dns: Default::default(),
            resources: ResourceSpec::default(),
            caller_data: String::new(),
        }
    }

    pub(crate) async fn run_sandbox(&self, name: &str) -> String {
        let made = self.sandboxes.run_sandbox(Self::spec(name)).await.unwrap();
        made.spec.id
    }

    /// A container that runs a shell script.
    pub(crate) fn container(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.to_owned(),
            attempt: 0,
            labels: Default::default(),
            annotations: Default::default(),
            image: IMAGE.to_owned(),
            process: ProcessSpec {
                args: ["sh", "-c", script].map(str::to_owned).to_vec(),
                env: vec!["PATH=/bin".to_owned(), "GREETING=hello".to_owned()],
                cwd: "/".to_owned(),
                ..ProcessSpec::default()
            },
            mounts: Vec::new(),
            readonly_rootfs: false,
            privileged: false,
            writable_layer_max: 0,
            resources: ResourceSpec::default(),
            log_path: self.log_path(name),
            stop_signal: 0,
            pid_namespace: Default::default(),
            paths: None,
            devices: Vec::new(),
            caller_data: String::new(),
        }
    }

    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(format!("{name}.log"))
    }

    /// Creates and starts a container.
    pub(crate) async fn start(&self, sandbox: &str, spec: ContainerSpec) -> String {
        let made = self
            .sandboxes
            .create_container(sandbox, spec)
            .await
            .unwrap();
        self.sandboxes.start_container(&made.id).await.unwrap();
        made.id
    }

    /// Waits for a container's end.
    pub(crate) async fn exited(&self, id: &str) -> Container {
        let mut events = self.sandboxes.subscribe();
        let exited = async {
            loop {
                let container = self.sandboxes.container(id).unwrap();
                if container.state == ContainerState::Exited {
                    return container;
                }
                let _ = events.recv().await;
            }
        };
        tokio::time::timeout(PATIENCE, exited).await.unwrap()
    }

    /// Runs a shell script in a container.
    pub(crate) async fn sh(&self, id: &str, script: &str) -> sandbox::ExecResult {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let run = self.sandboxes.exec_sync(id, args, Some(PATIENCE), 1 << 20);
        run.await.unwrap()
    }

    /// The contents of the lines of a log file, time, stream and tag left out.
    pub(crate) fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let content = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned();
        text.lines().map(content).collect()
    }
}

/// Sends input to a command.
pub(crate) async fn input(session: &ExecSession, text: &str) {
    let input = ExecInput::Stdin(text.as_bytes().to_vec());
    session.input.send(input).await.unwrap();
}

/// Takes output of a command until it holds `text`.
pub(crate) async fn until(session: &mut ExecSession, text: &str) -> String {
    let mut got = String::new();
    let found = async {
        while !got.contains(text) {
            match session.output.recv().await {
                Some(Ok(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes))) => {
                    got.push_str(&String::from_utf8_lossy(&bytes));
                }
                other => panic!("{other:?} instead of {text:?} after {got:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap();
    got
}
