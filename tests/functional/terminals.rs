//! Sessions on a terminal: its size, its keys, and that it is as it was afterwards.

use crate::sessions::pod;
use crate::streaming::PATIENCE;
use crate::{Test, shared};
use anyhow::{Context, ensure};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;
use spherule_tests::Daemon;
use spherule_tests::manifest::one;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    (
        "command_on_a_terminal_has_its_size_and_gives_it_back",
        terminal,
    ),
    (
        "terminal_is_given_back_whatever_ends_the_session",
        given_back,
    ),
    (
        "terminal_is_given_back_where_nobody_takes_what_is_typed",
        unread,
    ),
    (
        "terminal_is_given_back_where_nobody_takes_what_is_shown",
        unseen,
    ),
    (
        "attached_terminal_echoes_and_is_left_by_its_keys",
        attached_terminal,
    ),
];

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
    daemon.wait_for_end_of("terminal", "sleep 4322")
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
    let start_with = |first: &str| -> anyhow::Result<Terminal> {
        let script = format!("tty; {first} {NAMED} {asleep}; echo code $?; stty -a; echo bye");
        let mut shell = Terminal::new(&script)?;
        shell.until("up\r\n")?;
        let modes = Command::new("stty")
            .args(["-F", &shell.tty()?, "-a"])
            .output()?;
        let modes = String::from_utf8(modes.stdout)?;
        ensure!(modes.contains(" -icanon "), "{modes}");
        Ok(shell)
    };
    let start = || start_with("");
    let mut shell = start()?;
    kill_process(shell.pid()?, Signal::HUP)?;
    shell.is_given_back("code 129")?;
    daemon.wait_for_end_of("raw", "sleep 4324")?;
    // The terminal itself goes: nothing to give back, and nothing stays.
    // Also where nobody is told so, as below nohup.
    for first in ["", "trap '' HUP;"] {
        drop(start_with(first)?);
        daemon.wait_for_end_of("raw", "sleep 4324")?;
    }

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

fn unread() -> anyhow::Result<()> {
    // Within, a terminal that loses nothing.
    let within = "stty raw -echo; echo u''p; sleep 4325";
    stalled("unread-terminal", within, "sleep 4325", |shown| {
        fcntl_setfl(&*shown, OFlags::NONBLOCK)?;
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_secs(2) {
            match shown.write(&[b'x'; 1000]) {
                Ok(_) => last = Instant::now(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // The size waits behind all that.
        Ok(tcsetwinsize(&*shown, winsize(40, 100))?)
    })
}

fn unseen() -> anyhow::Result<()> {
    // It prints, and nobody looks.
    let within = "echo u''p; yes 4326";
    stalled("unseen-terminal", within, "yes 4326", |_| {
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })
}

/// A session on a terminal, which `stall` leaves with something that waits: SIGTERM
/// ends it and gives the terminal back, and `running` has ended with it.
fn stalled(
    name: &str,
    within: &str,
    running: &str,
    stall: impl FnOnce(&mut File) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    pod(name, "sleep 100000")?;
    // Not below `script`, which reads no more either where it cannot write.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let mut shown = File::from(openpt(flags)?);
    unlockpt(&shown)?;
    let terminal = ioctl_tiocgptpeer(&shown, flags)?;
    tcsetwinsize(&shown, winsize(33, 77))?;
    let mut client = daemon
        .command(["exec", "-it", name, "--", "sh", "-c", within])
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal)
        .spawn()?;
    let mut said = String::new();
    while !said.contains("up") {
        let mut bytes = [0; 1000];
        let read = shown.read(&mut bytes)?;
        said.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    stall(&mut shown)?;
    let pid = Pid::from_child(&client);
    kill_process(pid, Signal::WINCH)?;
    std::thread::sleep(Duration::from_millis(500));
    kill_process(pid, Signal::TERM)?;
    let start = Instant::now();
    let code = loop {
        if let Some(status) = client.try_wait()? {
            break status.code();
        }
        if start.elapsed() > PATIENCE {
            client.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(code == Some(143), "{code:?} after {:?}", start.elapsed());
    let modes = tcgetattr(&shown)?.local_modes;
    let wanted = LocalModes::ICANON | LocalModes::ECHO;
    ensure!(modes.contains(wanted), "{modes:?}");
    daemon.wait_for_end_of(name, running)
}

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
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
