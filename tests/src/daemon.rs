//! A daemon of a test's own: directories, process, command line.

use crate::{Host, IMAGE, Ran, guest_dir, machine, program};
use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// `kvm`, `qemu` or `auto`.
    pub engine: String,
    /// Directory with spherule and spherule-vmm, where they are not those of this
    /// checkout.
    pub programs: Option<PathBuf>,
    /// Directory with vmlinux and initramfs.cpio.
    pub guest: PathBuf,
    /// The host that it runs on, whose network pods get; without one they have
    /// their loopback only.
    pub host: Option<Arc<Host>>,
    /// More arguments for `spherule serve`.
    pub args: Vec<String>,
    /// More of its environment.
    pub environment: Vec<(String, PathBuf)>,
    /// Import [`IMAGE`] at the start.
    pub image: bool,
    /// Shell commands that run first, in a mount namespace in which the daemon
    /// then stays; `$d` is its directory ([`Daemon::dir`]). What they mount goes
    /// with the last process of the daemon's.
    pub prepare: Option<String>,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self {
            engine: machine().engine.into(),
            programs: None,
            guest: guest_dir(),
            host: None,
            args: Vec::new(),
            environment: Vec::new(),
            image: true,
            prepare: None,
        }
    }
}

impl DaemonOptions {
    /// Its pods may have what lies beneath that directory of the host.
    pub fn allowing(dir: impl AsRef<Path>) -> Self {
        Self {
            args: vec![
                "--allow-host-path".into(),
                dir.as_ref().display().to_string(),
            ],
            ..Self::default()
        }
    }
}

/// A running `spherule serve` with directories of its own. Dropping it removes
/// its pods and ends it.
#[derive(Debug)]
pub struct Daemon {
    dir: TempDir,
    options: DaemonOptions,
    child: Child,
}

impl Daemon {
    /// A daemon with this machine's engine and the busybox image.
    pub fn start() -> anyhow::Result<Self> {
        Self::with(DaemonOptions::default())
    }

    /// A daemon on a host of a test's own.
    pub fn on(host: &Arc<Host>) -> anyhow::Result<Self> {
        Self::with(DaemonOptions {
            host: Some(Arc::clone(host)),
            ..DaemonOptions::default()
        })
    }

    /// A daemon started in another way.
    pub fn with(options: DaemonOptions) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("spherule-test-")
            .tempdir()?;
        let child = spawn(dir.path(), &options)?;
        let mut daemon = Self {
            dir,
            options,
            child,
        };
        daemon.wait_ready()?;
        if daemon.options.image {
            let archive = daemon.dir.path().join("busybox.tar");
            std::fs::write(&archive, test_images::busybox_image(IMAGE)?.archive()?)?;
            daemon.cli(["import", path_str(&archive)?])?.ok()?;
        }
        Ok(daemon)
    }

    /// The daemon's state directory (`--root`).
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The daemon's socket directory (`--run`).
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Room for a test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path as the daemon sees it, in a mount namespace of its own or not.
    pub fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A `spherule` command to this daemon, not started yet.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(program("spherule"));
        command
            .arg("--run")
            .arg(self.run_dir())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs a `spherule` command to its end.
    pub fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Ran> {
        finish(self.command(args), None)
    }

    /// Runs a pod to its end: `spherule run -f -` with this manifest.
    pub fn run(&self, manifest: &str) -> anyhow::Result<Ran> {
        self.run_with(manifest, &[])
    }

    /// [`Self::run`] with more arguments.
    pub fn run_with(&self, manifest: &str, args: &[&str]) -> anyhow::Result<Ran> {
        let command = self.command(["run", "-f", "-"].into_iter().chain(args.iter().copied()));
        finish(command, Some(manifest))
    }

    /// Starts a pod and returns its id.
    pub fn run_detached(&self, manifest: &str) -> anyhow::Result<String> {
        Ok(self
            .run_with(manifest, &["--detach"])?
            .ok()?
            .trim()
            .to_owned())
    }

    /// Creates or changes objects: `spherule apply -f -` with these documents.
    pub fn apply(&self, documents: &str) -> anyhow::Result<Ran> {
        finish(self.command(["apply", "-f", "-"]), Some(documents))
    }

    /// Waits until a pod's containers have written something.
    pub fn wait_for_output(&self, pod: &str, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let out = self.cli(["logs", pod])?.ok()?;
            if out.contains(text) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "pod {pod} never wrote {text:?}:\n{out}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until no process of the pod's first container has these arguments.
    pub fn wait_for_end_of(&self, pod: &str, args: &str) -> anyhow::Result<()> {
        // Of a command that is to be killed at once.
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let processes = self.cli(["exec", pod, "--", "ps", "-o", "args"])?.ok()?;
            if !processes.contains(args) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it lives on:\n{processes}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything known of a pod.
    pub fn inspect(&self, pod: &str) -> anyhow::Result<serde_json::Value> {
        Ok(self.cli(["inspect", pod])?.json()?[0].take())
    }

    /// Waits until something is true of a pod; says what it was where it is not.
    pub fn wait_for(
        &self,
        pod: &str,
        what: &str,
        is: impl Fn(&serde_json::Value) -> bool,
    ) -> anyhow::Result<serde_json::Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.inspect(pod)?;
            if is(&now) {
                return Ok(now);
            }
            if Instant::now() > deadline {
                bail!("pod {pod} never was {what}; it is:\n{now:#}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// kill -9 of the daemon; its pods go on.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM to the daemon, and its end; its pods go on.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "spherule serve ended: {status}");
        Ok(())
    }

    /// Starts the daemon again on the same directories.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.try_wait()?.is_some(), "the daemon still runs");
        self.child = spawn(self.dir.path(), &self.options)?;
        self.wait_ready()
    }

    /// What the daemon wrote to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("serve.log")).unwrap_or_default()
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // The socket may be the one of a daemon that was killed: ask it.
        while self.cli(["info"])?.code != Some(0) {
            if let Some(status) = self.child.try_wait()? {
                bail!("spherule serve ended ({status}):\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("spherule serve never answered:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pods = self
            .cli(["ps", "--all", "--output", "json"])
            .and_then(Ran::json);
        for pod in pods
            .ok()
            .as_ref()
            .and_then(|p| p.as_array())
            .into_iter()
            .flatten()
        {
            if let Some(id) = pod["id"].as_str() {
                let _ = self.cli(["rm", "--force", id]);
            }
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, options: &DaemonOptions) -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("serve.log"))?;
    let spherule = match &options.programs {
        Some(programs) => programs.join("spherule"),
        None => program("spherule"),
    };
    let mut command = match (&options.host, &options.prepare) {
        (Some(host), None) => host.command(&spherule),
        (None, None) => Command::new(spherule),
        (_, Some(script)) => {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "--propagation", "private", "sh", "-ec"])
                .arg(format!("d=$1; shift; {script}; exec \"$@\""))
                .arg("sh")
                .arg(dir)
                .arg(spherule);
            command
        }
    };
    let network = match &options.host {
        Some(host) => host.cni_args(),
        None => vec!["--network".into(), "none".into()],
    };
    command
        .arg("serve")
        .args(network)
        .arg("--run")
        .arg(dir.join("run"))
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--guest")
        .arg(&options.guest)
        .args(["--engine", &options.engine])
        .args(&options.args)
        .envs(options.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start spherule; build it first: cargo xtask setup")
}

/// Runs a command to its end, with a time limit no sound run comes near.
fn finish(mut command: Command, input: Option<&str>) -> anyhow::Result<Ran> {
    let shown = format!("{command:?}");
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes())?;
    }
    let pid = Pid::from_child(&child);
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = ended.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = kill_process(pid, Signal::KILL);
        }
        late
    });
    let output = child.wait_with_output();
    drop(done);
    let late = watchdog.join().unwrap_or(false);
    let ran = Ran::new(shown, output?);
    ensure!(!late, "still running after {PATIENCE:?}: {ran}");
    Ok(ran)
}

fn path_str(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .context("temporary directories have plain names")
}
