//! Commands in containers, attached sessions and forwarded ports, by our own
//! command line.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::json;
use spherule_tests::Daemon;
use spherule_tests::manifest::one;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Far longer than a connection may take that nobody has any more.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const TESTS: &[Test] = &[
    ("command_has_our_input_output_and_exit_code", exec),
    ("caller_that_goes_away_ends_its_command", gone),
    (
        "caller_whose_input_nobody_takes_ends_its_command_too",
        gone_while_input_waits,
    ),
    (
        "attached_session_shows_output_and_ends_with_its_container",
        attach,
    ),
    ("input_reaches_a_container_that_has_stdin", input),
    ("local_port_is_a_pods", port_forward),
    ("forwarded_connection_stalls_no_other", stalled_ports),
    ("local_port_may_be_another_than_the_pods", other_port),
    (
        "daemon_that_dies_ends_sessions_and_no_container",
        daemon_dies,
    ),
];

/// A pod that runs `script`; its container runs.
pub(crate) fn pod(name: &str, script: &str) -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    daemon.run_detached(&one(name, script, json!({})))?;
    let runs = |pod: &serde_json::Value| pod["containers"][0]["state"] == "STATE_RUNNING";
    daemon.wait_for(name, "running", runs)?;
    Ok(())
}

fn exec() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("exec", "sleep 100000")?;
    let script = "echo out; echo err >&2; exit 7";
    let ran = daemon.cli(["exec", "exec", "--", "sh", "-c", script])?;
    ensure!(ran.stderr == "err\n", "{ran}");
    ensure!(ran.code(7)? == "out\n");
    let nothing = daemon.cli(["exec", "exec", "--", "/no/such"])?;
    nothing.refused(&["/no/such"])?;
    daemon
        .cli(["exec", "exec", "-c", "ghost", "--", "true"])?
        .refused(&["ghost", "it has: c"])?;

    // Any bytes, both ways, with an end.
    let sent: Vec<u8> = (0..3_000_000u32)
        .map(|n| u8::try_from(n / 7 % 256).unwrap_or(0))
        .collect();
    let mut child = daemon
        .command(["exec", "-i", "exec", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let out = child.wait_with_output()?;
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("the writer died"))??;
    ensure!(out.status.success() && out.stdout == sent, "{}", out.status);
    Ok(())
}

fn gone() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("gone", "sleep 100000")?;
    let mut child = daemon
        .command(["exec", "gone", "--", "sh", "-c", "echo up; sleep 4321"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
    ensure!(line == "up\n", "{line:?}");
    child.kill()?;
    child.wait()?;
    daemon.wait_for_end_of("gone", "sleep 4321")
}

/// The end of the connection is behind more input than all buffers on the way hold.
fn gone_while_input_waits() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("stuffed", "sleep 100000")?;
    let mut child = daemon
        .command(["exec", "-i", "stuffed", "--", "sleep", "4322"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let writer = std::thread::spawn(move || {
        // Fails once the caller is gone.
        while stdin.write_all(&[0; 4096]).is_ok() {
            counted.fetch_add(4096, Ordering::Relaxed);
        }
    });
    let mut before = usize::MAX;
    while before != sent.load(Ordering::Relaxed) || before < 1 << 19 {
        before = sent.load(Ordering::Relaxed);
        ensure!(before < 64 << 20, "{before} bytes wait somewhere");
        std::thread::sleep(Duration::from_secs(1));
    }
    child.kill()?;
    child.wait()?;
    let ended = writer.join();
    ensure!(ended.is_ok(), "the writer died");
    daemon.wait_for_end_of("stuffed", "sleep 4322")
}

fn attach() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let script = "while ! test -e /end; do echo tick; usleep 100000; done; exit 6";
    pod("attach", script)?;
    let mut leaves = daemon
        .command(["attach", "attach"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stays = daemon
        .command(["attach", "attach"])
        .stdout(Stdio::piped())
        .spawn()?;
    for child in [&mut leaves, &mut stays] {
        let mut line = String::new();
        let stdout = child.stdout.as_mut().context("stdout")?;
        BufReader::with_capacity(5, stdout).read_line(&mut line)?;
        ensure!(line == "tick\n", "{line:?}");
    }
    leaves.kill()?;
    leaves.wait()?;
    // Killed where its container is faster to end.
    daemon.cli(["exec", "attach", "--", "touch", "/end"])?;
    let out = stays.wait_with_output()?;
    ensure!(out.status.code() == Some(6), "{out:?}");
    let wrong = daemon.cli(["attach", "-i", "attach"])?;
    wrong.refused(&[])?;
    Ok(())
}

fn input() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let stdin = json!({"stdin": true, "stdinOnce": true});
    daemon.run_detached(&one("input", "md5sum; exit 5", stdin))?;
    let runs = |pod: &serde_json::Value| pod["containers"][0]["state"] == "STATE_RUNNING";
    daemon.wait_for("input", "running", runs)?;
    let mut child = daemon
        .command(["attach", "-i", "input"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(b"hello")?;
    let out = child.wait_with_output()?;
    ensure!(
        out.status.code() == Some(5) && out.stdout.starts_with(b"5d41402abc4b2a76b9719d911017c592"),
        "{out:?}"
    );
    Ok(())
}

fn daemon_dies() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    daemon.run_detached(&one(
        "stays",
        "while true; do echo tick; sleep 1; done",
        json!({}),
    ))?;
    let runs = |pod: &serde_json::Value| pod["containers"][0]["state"] == "STATE_RUNNING";
    daemon.wait_for("stays", "running", runs)?;
    let sessions = [
        &["exec", "stays", "--", "sh", "-c", "echo tick; sleep 4321"][..],
        &["attach", "stays"],
    ];
    let mut children = Vec::new();
    for args in sessions {
        let mut child = daemon
            .command(args.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.as_mut().context("stdout")?;
        BufReader::with_capacity(5, stdout).read_line(&mut line)?;
        ensure!(line == "tick\n", "{line:?}");
        children.push(child);
    }
    daemon.kill()?;
    for child in children {
        let out = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(
            out.status.code() == Some(1) && said.contains("daemon"),
            "{out:?}"
        );
    }
    daemon.restart()?;
    daemon.wait_for("stays", "running", runs)?;
    daemon.wait_for_end_of("stays", "sleep 4321")?;
    let restarts = daemon.inspect("stays")?["containers"][0]["restartCount"].clone();
    ensure!(restarts.as_u64().unwrap_or(0) == 0, "{restarts}");
    Ok(())
}

fn port_forward() -> anyhow::Result<()> {
    pod("ports", "nc -ll -p 7 -e md5sum")?;
    ports_of(&*shared::daemon()?, "ports")
}

/// Port 7 of the pod answers with the MD5 of what it gets, port 8 is closed.
pub(crate) fn ports_of(daemon: &Daemon, pod: &str) -> anyhow::Result<()> {
    let mut child = daemon
        .command(["port-forward", pod, ":7", ":8", "--address", "127.0.0.1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let result = forwarded(&mut child);
    child.kill()?;
    child.wait()?;
    result
}

/// Neither full ones nor many.
fn stalled_ports() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let script = "nc -ll -p 9 -e sleep 100000 & exec nc -ll -p 7 -e md5sum";
    pod("stalled-ports", script)?;
    let mut child = daemon
        .command(["port-forward", "stalled-ports", ":9", ":7"])
        .args(["--address", "127.0.0.1"])
        .stdout(Stdio::piped())
        .spawn()?;
    let result = (|| {
        let [full, open] = addresses(&mut child)?;
        is_served(&open)?;
        let mut held = Vec::new();
        for _ in 0..8 {
            let mut stream = TcpStream::connect(&full)?;
            stream.set_write_timeout(Some(Duration::from_secs(1)))?;
            let mut sent = 0;
            while stream.write_all(&[0; 1 << 16]).is_ok() {
                sent += 1 << 16;
                ensure!(sent < 64 << 20, "{sent} bytes wait somewhere");
            }
            held.push(stream);
        }
        for _ in 0..250 {
            held.push(TcpStream::connect(&full)?);
        }
        is_served(&open)
    })();
    child.kill()?;
    child.wait()?;
    result?;
    // Nor does one outlive its client because the pod does not read it.
    let netstat = || {
        daemon
            .cli(["exec", "stalled-ports", "--", "sh", "-c", "netstat -tn"])?
            .ok()
    };
    let start = Instant::now();
    let mut open = netstat()?;
    while open.contains("ESTABLISHED") {
        ensure!(start.elapsed() < PATIENCE, "{open}");
        std::thread::sleep(Duration::from_millis(200));
        open = netstat()?;
    }
    Ok(())
}

fn other_port() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("other-port", "nc -ll -p 80 -e md5sum")?;
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let ports = format!("{}:80", free.port());
    let mut child = daemon
        .command(["port-forward", "other-port", &ports])
        .args(["--address", "127.0.0.1"])
        .stdout(Stdio::piped())
        .spawn()?;
    let result = (|| {
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line == format!("Forwarding from {free} -> 80\n"), "{line}");
        is_served(&free.to_string())
    })();
    child.kill()?;
    child.wait()?;
    result
}

/// A pod's md5sum answers there.
fn is_served(address: &str) -> anyhow::Result<()> {
    // The answer comes after the end of what is sent.
    let md5 = || -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        let mut text = String::new();
        // Where nothing listens yet, it is reset at some moment.
        let _ = stream
            .write_all(b"hello")
            .and_then(|()| stream.shutdown(Shutdown::Write))
            .and_then(|()| stream.read_to_string(&mut text));
        Ok(text)
    };
    // Until the pod's program listens.
    let mut text = md5()?;
    for _ in 0..600 {
        if text.is_empty() {
            std::thread::sleep(Duration::from_millis(100));
            text = md5()?;
        }
    }
    ensure!(
        text.starts_with("5d41402abc4b2a76b9719d911017c592"),
        "{text:?}"
    );
    Ok(())
}

/// Where two ports are, as `spherule port-forward` tells it.
fn addresses(child: &mut Child) -> anyhow::Result<[String; 2]> {
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let mut address = || -> anyhow::Result<String> {
        let line = lines.next().context("a line")??;
        let rest = line
            .strip_prefix("Forwarding from ")
            .context(line.clone())?;
        Ok(rest.split(' ').next().unwrap_or_default().to_owned())
    };
    Ok([address()?, address()?])
}

fn forwarded(child: &mut Child) -> anyhow::Result<()> {
    let [open, closed] = addresses(child)?;
    is_served(&open)?;
    let mut refused = TcpStream::connect(&closed)?;
    let mut nothing = Vec::new();
    // A reset is as good as an end.
    let _ = refused.read_to_end(&mut nothing);
    ensure!(nothing.is_empty());
    let mut stderr = BufReader::new(child.stderr.take().context("stderr")?);
    let mut said = String::new();
    while !said.contains("port 8: connection refused") {
        ensure!(stderr.read_line(&mut said)? > 0, "{said}");
    }
    Ok(())
}
