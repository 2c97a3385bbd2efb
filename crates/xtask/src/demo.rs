//! `cargo xtask demo`: a daemon, an image, pods, and the time each stage took.

use crate::run::{checked, step};
use crate::{packages, setup};
use anyhow::{Context, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The image that the manifests under tests/pods name.
const IMAGE: &str = "localhost/busybox:demo";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Engine for the pods: auto, kvm or qemu
    #[arg(long, default_value = "auto")]
    engine: String,
}

/// Everything in directories of its own that are gone afterwards.
pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::KERNEL, packages::RUN, packages::DEMO])?;
    let spherule = setup::build(root)?.spherule;
    let dir = tempfile::Builder::new()
        .prefix("spherule-demo-")
        .tempdir()?;
    let daemon = Daemon::start(root, &spherule, dir.path(), &args.engine)?;

    step("making a small image of busybox, and importing it");
    let archive = dir.path().join("busybox.tar");
    std::fs::write(&archive, test_images::busybox_image(IMAGE)?.archive()?)?;
    checked(daemon.client().arg("import").arg(&archive))?;
    step("spherule info");
    checked(daemon.client().arg("info"))?;

    for pod in ["hello", "web"] {
        let manifest = root.join("tests/pods").join(format!("{pod}.yaml"));
        step(&format!("spherule run -f {}", manifest.display()));
        checked(
            daemon
                .client()
                .args(["run", "--timings", "-f"])
                .arg(&manifest),
        )?;
    }
    step("spherule ps --all");
    checked(daemon.client().args(["ps", "--all"]))?;
    for pod in ["hello", "web"] {
        checked(daemon.client().args(["rm", pod]))?;
    }
    daemon.stop()?;
    step("the demo is done; `spherule --help` shows what else there is");
    Ok(())
}

/// `spherule serve` in a network namespace of its own, where `network init` gives it
/// a network: nothing of this machine's is touched. Without root there is none.
fn in_own_network(spherule: &Path, dir: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        let mut serve = Command::new(spherule);
        serve.args(["serve", "--network", "none"]);
        return serve;
    }
    let script = "mount -t tmpfs tmpfs /run; ip link set lo up; dir=$1; shift; \
                  \"$1\" network init --cni-conf-dir \"$dir/net.d\" --data-dir \"$dir/leases\" >&2; \
                  exec \"$@\"";
    let mut serve = Command::new("unshare");
    serve
        .args(["--net", "--mount", "--propagation", "private"])
        .args(["sh", "-ec", script, "sh"])
        .arg(dir)
        .arg(spherule)
        .args(["serve", "--cni-conf-dir"])
        .arg(dir.join("net.d"));
    serve
}

/// A `spherule serve` of the demo's own.
struct Daemon {
    child: Child,
    spherule: PathBuf,
    run: PathBuf,
}

impl Daemon {
    fn start(root: &Path, spherule: &Path, dir: &Path, engine: &str) -> anyhow::Result<Self> {
        step("spherule serve");
        let run = dir.join("run");
        let log = dir.join("serve.log");
        let mut child = in_own_network(spherule, dir)
            .args(["--engine", engine, "--root"])
            .arg(dir.join("root"))
            .arg("--run")
            .arg(&run)
            .arg("--guest")
            .arg(root.join("target/guest"))
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", spherule.display()))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !run.join("spherule.sock").exists() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "spherule serve ended ({status}):\n{}",
                    std::fs::read_to_string(&log)?
                );
            }
            if Instant::now() > deadline {
                bail!("spherule serve opened no socket within a minute");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            child,
            spherule: spherule.into(),
            run,
        })
    }

    fn client(&self) -> Command {
        let mut client = Command::new(&self.spherule);
        client.arg("--run").arg(&self.run);
        client
    }

    /// Asks the daemon to end, and waits for it.
    fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    /// A demo that failed halfway leaves no daemon behind. Its pods go first:
    /// they would outlive it.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            for pod in ["hello", "web"] {
                let _ = self.client().args(["rm", "--force", pod]).output();
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
