//! Guests that are broken, die, or shout: what is said, and that nothing stays.

use crate::lifecycle::processes_naming;
use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use spherule_tests::guest::{cpio, spinning_kernel};
use spherule_tests::manifest::{container, one, pod};
use spherule_tests::{Daemon, DaemonOptions, guest_dir, machine};

pub(crate) const TESTS: &[Test] = &[
    (
        "corrupt_kernel_fails_the_pod_with_the_cause",
        corrupt_kernel,
    ),
    ("truncated_kernel_fails_the_pod", truncated_kernel),
    ("kernel_that_only_spins_fails_the_pod", || {
        spinning_kernel_on(machine().engine)
    }),
    ("guest_that_never_answers_fails_the_pod", silent_guest),
    ("guest_panic_fails_the_pod_with_the_panic", guest_panic),
    ("killed_agent_is_told_and_its_pod_replaced", killed_agent),
    ("flooded_console_is_bounded_and_the_pod_goes_on", kmsg_flood),
];

/// A daemon whose guest directory was tampered with.
fn with_guest(
    kernel: Option<&[u8]>,
    initramfs: Option<&[u8]>,
    options: DaemonOptions,
) -> anyhow::Result<(tempfile::TempDir, Daemon)> {
    let dir = tempfile::tempdir()?;
    for (name, content) in [("vmlinux", kernel), ("initramfs.cpio", initramfs)] {
        match content {
            Some(content) => std::fs::write(dir.path().join(name), content)?,
            None => std::os::unix::fs::symlink(guest_dir().join(name), dir.path().join(name))?,
        }
    }
    let guest = dir.path().into();
    let daemon = Daemon::with(DaemonOptions { guest, ..options })?;
    Ok((dir, daemon))
}

/// A daemon that gives a guest 15 seconds.
fn impatient() -> DaemonOptions {
    DaemonOptions {
        args: vec!["--agent-timeout".into(), "15s".into()],
        ..DaemonOptions::default()
    }
}

/// The pod fails, and its message has all of these words; nothing of its VM stays.
fn fails_with(daemon: &Daemon, words: &[&str]) -> anyhow::Result<()> {
    daemon.run_detached(&one("fails", "true", json!({})))?;
    let pod = daemon.wait_for("fails", "failed", |p| p["phase"] == "PHASE_FAILED")?;
    let text = pod["message"].as_str().context("message")?;
    for word in words {
        ensure!(
            text.to_lowercase().contains(&word.to_lowercase()),
            "no {word:?} in {text:?}"
        );
    }
    nothing_left(daemon)
}

/// No process, no directory of a pod's VM.
fn nothing_left(daemon: &Daemon) -> anyhow::Result<()> {
    let left = processes_naming(daemon)?;
    ensure!(left.is_empty(), "left: {left:?}");
    for dir in [daemon.root().join("pods"), daemon.run_dir().join("pods")] {
        let left: Vec<_> = std::fs::read_dir(dir)?.collect();
        ensure!(left.is_empty(), "left: {left:?}");
    }
    Ok(())
}

fn corrupt_kernel() -> anyhow::Result<()> {
    let (_dir, daemon) = with_guest(Some(b"this is no kernel"), None, impatient())?;
    fails_with(&daemon, &["kernel"])
}

fn truncated_kernel() -> anyhow::Result<()> {
    let mut kernel = std::fs::read(guest_dir().join("vmlinux"))?;
    kernel.truncate(1 << 20);
    let (_dir, daemon) = with_guest(Some(&kernel), None, impatient())?;
    fails_with(&daemon, &["kernel"])
}

/// The start fails in time, and says that the guest was silent.
pub(crate) fn spinning_kernel_on(engine: &str) -> anyhow::Result<()> {
    let options = DaemonOptions {
        engine: engine.into(),
        ..impatient()
    };
    let (_dir, daemon) = with_guest(Some(&spinning_kernel()), None, options)?;
    fails_with(&daemon, &["agent", "15 s", "printed nothing"])
}

fn silent_guest() -> anyhow::Result<()> {
    // /init that sleeps for ever instead of the agent.
    let busybox = std::fs::read(test_images::BUSYBOX)?;
    let script = b"#!/busybox sh\nexec /busybox sleep 100000\n";
    let archive = cpio(&[("busybox", &busybox), ("init", script)]);
    let (_dir, daemon) = with_guest(None, Some(&archive), impatient())?;
    fails_with(&daemon, &["agent", "15 s"])
}

fn guest_panic() -> anyhow::Result<()> {
    // No /init at all: the kernel panics for want of one.
    let (_dir, daemon) = with_guest(None, Some(&cpio(&[])), impatient())?;
    fails_with(&daemon, &["panic"])
}

/// What runs beside the agent, in the guest but outside of its containers. Nothing
/// can kill PID 1 by a signal, so this overwrites its code as soon as a container
/// runs a process called `ash`: the agent then dies of SIGSEGV or SIGILL.
const KILLER: &[u8] = b"#!/busybox sh
/busybox mkdir /p
/busybox mount -t proc proc /p
/busybox mknod /zero c 1 5
(
    until /busybox grep -qx ash /p/[0-9]*/comm; do /busybox usleep 200000; done
    code=$(/busybox grep -m 1 r-xp /p/1/maps)
    code=${code%% *}
    first=$((0x${code%-*} / 4096))
    /busybox dd if=/zero of=/p/1/mem bs=4096 conv=notrunc \\
        seek=$first count=$((0x${code#*-} / 4096 - first))
) 2>/dev/null &
exec /init
";

fn killed_agent() -> anyhow::Result<()> {
    let busybox = std::fs::read(test_images::BUSYBOX)?;
    let mut initramfs = std::fs::read(guest_dir().join("initramfs.cpio"))?;
    initramfs.extend(cpio(&[("busybox", &busybox), ("start", KILLER)]));
    let args = [
        "--kernel-args",
        "rdinit=/start",
        "--restart-backoff",
        "200ms",
    ];
    let options = DaemonOptions {
        args: args.map(Into::into).into(),
        ..DaemonOptions::default()
    };
    let (_dir, daemon) = with_guest(None, Some(&initramfs), options)?;
    let script = "echo up; sleep 3; exec ash -c 'sleep 1000; true'";
    let ran = daemon.run(&one("once", script, json!({})))?;
    ran.refused(&["VmDied", "Kernel panic", "Attempted to kill init"])?;
    let ended = daemon.inspect("once")?;
    let why = &ended["containers"][0];
    ensure!(why["reason"] == "VmDied", "{ended:#}");
    let why = why["message"].as_str().unwrap_or_default();
    ensure!(why.contains("Attempted to kill init"), "{ended:#}");
    ensure!(daemon.cli(["logs", "once"])?.ok()? == "up\n");
    daemon.cli(["rm", "once"])?.ok()?;
    nothing_left(&daemon)?;

    let c = container("c", script, json!({}));
    let manifest = pod("again", &[c], json!({"restartPolicy": "Always"}));
    daemon.run_detached(&manifest)?;
    let running = |p: &Value| p["containers"][0]["state"] == "STATE_RUNNING";
    let first = daemon.wait_for("again", "running", running)?;
    let second = daemon.wait_for("again", "replaced", |p| {
        running(p) && p["containers"][0]["restartCount"].as_u64() >= Some(1)
    })?;
    let vmm = |p: &Value| p["vm"]["vmmPid"].as_u64();
    ensure!(
        vmm(&first) != vmm(&second),
        "one VM:\n{first:#}\n{second:#}"
    );
    daemon.wait_for("again", "heard again", |_| {
        let logs = daemon.cli(["logs", "again"]).and_then(|l| l.ok());
        logs.is_ok_and(|l| l.starts_with("up\nup\n"))
    })?;
    daemon.cli(["rm", "--force", "again"])?.ok()?;
    nothing_left(&daemon)
}

/// Bytes that a pod's kernel.log may have.
const KERNEL_LOG_LIMIT: u64 = 1 << 20;

fn kmsg_flood() -> anyhow::Result<()> {
    // Six MiB, each line an emergency, which no console level holds back.
    let line = "x".repeat(300);
    let script = format!(
        "echo on > /proc/sys/kernel/printk_devkmsg; n=0; \
         while [ $n -lt 20000 ]; do n=$((n+1)); echo '<0>flood {line}'; done > /dev/kmsg; \
         echo done; exec sleep 1000"
    );
    let daemon = shared::daemon()?;
    let extra = json!({"securityContext": {"privileged": true}});
    daemon.run_detached(&one("kmsg-flood", &script, extra))?;
    let pod = daemon.wait_for("kmsg-flood", "through with it", |p| {
        let logs = daemon.cli(["logs", "kmsg-flood"]).and_then(|l| l.ok());
        logs.is_ok_and(|l| l.contains("done")) || p["phase"] == "PHASE_FAILED"
    })?;
    let id = pod["id"].as_str().context("id")?;
    let log = std::fs::read(daemon.root().join("pods").join(id).join("kernel.log"))?;
    let text = String::from_utf8_lossy(&log);
    ensure!(
        text.contains("flood xxx"),
        "no flood in {} bytes",
        log.len()
    );
    ensure!(log.len() as u64 <= KERNEL_LOG_LIMIT, "{} bytes", log.len());
    ensure!(pod["containers"][0]["state"] == "STATE_RUNNING", "{pod:#}");
    daemon.cli(["stop", "--grace", "0", "kmsg-flood"])?.ok()?;
    daemon.cli(["rm", "kmsg-flood"])?.ok()?;
    daemon.run(&one("after-flood", "true", json!({})))?.ok()?;
    Ok(())
}
