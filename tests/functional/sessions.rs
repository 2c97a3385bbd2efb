//! Commands in containers, attached sessions and forwarded ports, by our own
//! command line.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use spherule_tests::Daemon;
use spherule_tests::manifest::one;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("command_has_our_input_output_and_exit_code", exec),
    ("caller_that_goes_away_ends_its_command", gone),
    (
        "attached_session_shows_output_and_ends_with_its_container",
        attach,
    ),
    ("input_reaches_a_container_that_has_stdin", input),
    ("local_port_is_a_pods", port_forward),
    ("local_port_may_be_another_than_the_pods", other_port),
    (
        "daemon_that_dies_ends_sessions_and_no_container",
        daemon_dies,
    ),
];

pub(crate) const TERMINALS: &[Test] = &[
    (
        "command_on_a_terminal_has_its_size_and_gives_it_back",
        terminal,
    ),
    (
        "terminal_is_given_back_whatever_ends_the_session",
        given_back,
    ),
    (
        "attached_terminal_echoes_and_is_left_by_its_keys",
        attached_terminal,
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

/// Tells its process, and becomes the command that follows.
const NAMED: &str = "sh -c 'echo pid $$ end; exec \"$@\"' sh";

/// A program below `script`, which makes it a terminal.
pub(crate) struct Terminal {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    all: String,
}

impl Terminal {
    /// Runs a shell's script with a terminal of 77 by 33.
    pub(crate) fn new(script: &str) -> anyhow::Result<Self> {
        let script = format!("stty rows 33 cols 77; {script}");
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", &script, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("script, of the package bsdutils")?;
        Ok(Self {
            stdin: child.stdin.take().context("stdin")?,
            stdout: child.stdout.take().context("stdout")?,
            child,
            all: String::new(),
        })
    }

    /// The terminal, where the script's first command is `tty`.
    fn tty(&self) -> anyhow::Result<String> {
        Ok(self.all.lines().next().context("a line")?.trim().to_owned())
    }

    /// The process that [`NAMED`] has told.
    fn pid(&self) -> anyhow::Result<Pid> {
        let (_, pid) = self.all.split_once("pid ").context("a pid")?;
        let pid = pid.split(' ').next().unwrap_or_default();
        Pid::from_raw(pid.parse()?).context("a pid")
    }

    /// The script goes on after this word with `stty -a; echo bye`, which show the
    /// terminal as it was.
    fn is_given_back(&mut self, word: &str) -> anyhow::Result<()> {
        self.until("bye")?;
        let (_, end) = self.all.split_once(word).context(self.all.clone())?;
        ensure!(end.contains(" icanon ") && end.contains(" echo "), "{end}");
        Ok(())
    }

    pub(crate) fn type_in(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.stdin.write_all(keys.as_bytes())?)
    }

    /// Reads on until this was shown.
    pub(crate) fn until(&mut self, word: &str) -> anyhow::Result<()> {
        while !self.all.contains(word) {
            let mut bytes = [0; 1000];
            let read = self.stdout.read(&mut bytes)?;
            ensure!(read > 0, "no {word:?} in {:?}", self.all);
            self.all.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `spherule` command as a shell's words.
pub(crate) fn words(daemon: &Daemon, args: &[&str]) -> String {
    let command = daemon.command(args.iter().copied());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    // Quotes within are ended, escaped and begun again.
    let words = words.map(|w| format!("'{}'", w.to_string_lossy().replace('\'', r"'\''")));
    words.collect::<Vec<_>>().join(" ")
}

fn terminal() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("terminal", "sleep 100000")?;
    // ^C reaches the command, not us; the size is ours, also when it changes while
    // the command prints.
    let within = r#"
        trap 'echo inter""rupted' INT; stty size; echo u""p
        while test "$(stty size)" != "40 100"; do echo tick; usleep 10000; done
        echo res""ized; exit 9"#;
    let first = words(
        &daemon,
        &["exec", "-it", "terminal", "--", "sh", "-c", within],
    );
    let asleep = [
        "exec",
        "-it",
        "terminal",
        "--",
        "sh",
        "-c",
        "echo aga''in; sleep 4322",
    ];
    let second = words(&daemon, &asleep);
    let mut shell = Terminal::new(&format!(
        "tty; {first}; echo code $?; stty -a
         {NAMED} {second}; echo code $?; stty -a; echo bye"
    ))?;
    shell.until("33 77")?;
    shell.until("up\r\n")?;
    shell.type_in("\x03")?;
    shell.until("interrupted")?;
    let tty = shell.tty()?;
    let resized = Command::new("stty")
        .args(["-F", &tty, "rows", "40", "cols", "100"])
        .status()?;
    ensure!(resized.success(), "{tty}");
    shell.until("resized")?;
    shell.until("code 9")?;
    // A signal that ends us gives the terminal back, too.
    shell.until("again")?;
    let (done, _) = shell.all.split_once("pid ").context("a pid")?;
    ensure!(
        done.contains(" icanon ") && done.contains(" echo "),
        "{done}"
    );
    kill_process(shell.pid()?, Signal::TERM)?;
    shell.is_given_back("code 143")?;
    // And with us went what we ran.
    let gone = "while ps | grep -q '[s]leep 4322'; do usleep 1000; done";
    daemon
        .cli(["exec", "terminal", "--", "sh", "-c", gone])?
        .ok()?;
    Ok(())
}

fn given_back() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    daemon.run_detached(&one("raw", "sleep 100000", json!({})))?;
    let runs = |pod: &serde_json::Value| pod["containers"][0]["state"] == "STATE_RUNNING";
    daemon.wait_for("raw", "running", runs)?;
    let asleep = [
        "exec",
        "-it",
        "raw",
        "--",
        "sh",
        "-c",
        "echo u''p; sleep 4324",
    ];
    let asleep = words(&daemon, &asleep);
    let start = || -> anyhow::Result<Terminal> {
        let script = format!("tty; {NAMED} {asleep}; echo code $?; stty -a; echo bye");
        let mut shell = Terminal::new(&script)?;
        shell.until("up\r\n")?;
        let modes = Command::new("stty")
            .args(["-F", &shell.tty()?, "-a"])
            .output()?;
        let modes = String::from_utf8(modes.stdout)?;
        ensure!(modes.contains(" -icanon "), "{modes}");
        Ok(shell)
    };
    let gone = "while ps | grep -q '[s]leep 4324'; do usleep 1000; done";
    let gone = ["exec", "raw", "--", "sh", "-c", gone];
    let mut shell = start()?;
    kill_process(shell.pid()?, Signal::HUP)?;
    shell.is_given_back("code 129")?;
    daemon.cli(gone)?.ok()?;
    // The terminal itself goes: nothing to give back, and nothing stays.
    drop(start()?);
    daemon.cli(gone)?.ok()?;

    // A daemon that is told to end, and one that just dies.
    let mut shell = start()?;
    daemon.terminate()?;
    shell.is_given_back("code 1")?;
    ensure!(shell.all.contains("is being restarted"), "{}", shell.all);
    daemon.restart()?;
    let mut shell = start()?;
    daemon.kill()?;
    shell.is_given_back("code 1")?;
    ensure!(shell.all.contains("the daemon went away"), "{}", shell.all);
    daemon.restart()
}

fn attached_terminal() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let script = "while read word; do echo got $word at $(stty size); done";
    let own = json!({"stdin": true, "tty": true});
    daemon.run_detached(&one("attach-tty", script, own))?;
    let runs = |pod: &serde_json::Value| pod["containers"][0]["state"] == "STATE_RUNNING";
    daemon.wait_for("attach-tty", "running", runs)?;
    let attach = words(&daemon, &["attach", "-it", "attach-tty"]);
    // Twice: what was left goes on.
    for word in ["one", "two"] {
        let mut shell = Terminal::new(&format!("{attach}; echo code $?; stty -a; echo bye"))?;
        // The container's terminal echoes it, and knows our size.
        shell.type_in(&format!("{word}\r"))?;
        shell.until(&format!("got {word} at 33 77\r\n"))?;
        ensure!(shell.all.contains(&format!("{word}\r\n")), "{}", shell.all);
        shell.type_in("\x10\x11")?;
        shell.is_given_back("code 0")?;
    }
    let pod = daemon.inspect("attach-tty")?;
    let container = &pod["containers"][0];
    ensure!(runs(&pod), "{container}");
    let restarts = container["restartCount"].as_u64().unwrap_or(0);
    ensure!(restarts == 0, "{container}");
    let log = daemon.cli(["logs", "attach-tty"])?.ok()?;
    ensure!(log.contains("got one") && log.contains("got two"), "{log}");
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
    let script = "while ps | grep -q '[s]leep 4321'; do usleep 1000; done";
    daemon
        .cli(["exec", "gone", "--", "sh", "-c", script])?
        .ok()?;
    Ok(())
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
    daemon
        .cli(["exec", "attach", "--", "touch", "/end"])?
        .ok()?;
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
    let script = "while ps | grep -q '[s]leep 4321'; do usleep 1000; done; echo gone";
    let ran = daemon.cli(["exec", "stays", "--", "sh", "-c", script])?;
    ensure!(ran.ok()? == "gone\n");
    let restarts = daemon.inspect("stays")?["containers"][0]["restartCount"].clone();
    ensure!(restarts.as_u64().unwrap_or(0) == 0, "{restarts}");
    Ok(())
}

fn port_forward() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod("ports", "nc -ll -p 7 -e md5sum")?;
    let mut child = daemon
        .command([
            "port-forward",
            "ports",
            ":7",
            ":8",
            "--address",
            "127.0.0.1",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let result = forwarded(&mut child);
    child.kill()?;
    child.wait()?;
    result
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
    for _ in 0..100 {
        if text.is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(100));
            text = md5()?;
        }
    }
    ensure!(
        text.starts_with("5d41402abc4b2a76b9719d911017c592"),
        "{text:?}"
    );
    Ok(())
}

fn forwarded(child: &mut std::process::Child) -> anyhow::Result<()> {
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let mut address = || -> anyhow::Result<String> {
        let line = lines.next().context("a line")??;
        let rest = line
            .strip_prefix("Forwarding from ")
            .context(line.clone())?;
        Ok(rest.split(' ').next().unwrap_or_default().to_owned())
    };
    let (open, closed) = (address()?, address()?);
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
