//! One run of a program with a deadline and bounds on what it may say.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The most that a plugin may answer, in bytes.
pub(crate) const MAX_ANSWER_LEN: usize = 1 << 20;
/// How much of the end of its error output is kept, in bytes.
const ERROR_TAIL_LEN: usize = 8 << 10;

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// The end of it.
    pub(crate) stderr: String,
}

/// Why there is no output.
#[derive(Debug)]
pub(crate) enum RunError {
    Spawn(io::Error),
    /// The pipes to it failed.
    Pipe(io::Error),
    /// Killed at its deadline, with its error output.
    TimedOut(String),
    /// Killed for saying more than [`MAX_ANSWER_LEN`].
    TooMuch,
}

/// Runs `program` in a process group of its own, which is killed when it passes
/// the deadline or says too much.
pub(crate) fn run(
    program: &Path,
    env: &[(&str, String)],
    input: &[u8],
    timeout: Duration,
) -> Result<Output, RunError> {
    let mut command = Command::new(program);
    command
        .envs(env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = spawn(&mut command).map_err(RunError::Spawn)?;
    let talk = Talk::new(&mut child, input).and_then(|mut talk| {
        let end = talk.until_exit(Instant::now() + timeout)?;
        Ok((talk, end))
    });
    let exited = matches!(talk, Ok((_, End::Exited)));
    let status = if exited {
        Some(child.wait().map_err(RunError::Pipe)?)
    } else {
        kill_group(&child);
        reap(child);
        None
    };
    let (mut talk, end) = talk.map_err(RunError::Pipe)?;
    match (end, status) {
        (End::Exited, Some(status)) => Ok(Output {
            status,
            stderr: talk.error_text(),
            stdout: std::mem::take(&mut talk.stdout),
        }),
        (End::TooMuch, _) => Err(RunError::TooMuch),
        (End::TimedOut | End::Exited, _) => Err(RunError::TimedOut(talk.error_text())),
    }
}

/// A program that is being written is "busy" for a moment after a fork elsewhere
/// in this process kept its descriptor; that passes.
fn spawn(command: &mut Command) -> io::Result<Child> {
    for _ in 0..20 {
        match command.spawn() {
            Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => {
                std::thread::sleep(Duration::from_millis(25));
            }
            other => return other,
        }
    }
    command.spawn()
}

fn kill_group(child: &Child) {
    // Its own group, whose number is its pid: it is not reaped yet.
    let group = Pid::from_child(child);
    if let Err(e) = kill_process_group(group, Signal::KILL)
        && e != Errno::SRCH
    {
        tracing::warn!(%e, "cannot kill a network plugin");
    }
}

/// Waits for a killed program, but not for ever: one that hangs in the kernel (a
/// dead file server, say) dies when that lets go of it.
fn reap(mut child: Child) {
    let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).is_ok_and(|pidfd| {
        let grace = Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&grace)).is_ok_and(|n| n > 0)
    });
    if ended {
        let _ = child.wait();
        return;
    }
    tracing::warn!(pid = child.id(), "a killed network plugin does not end");
    let waiter = std::thread::Builder::new().name("plugin-reaper".into());
    if let Err(e) = waiter.spawn(move || child.wait()) {
        tracing::warn!(%e, "nobody waits for a killed network plugin");
    }
}

enum End {
    Exited,
    TimedOut,
    TooMuch,
}

/// The three pipes and the process.
struct Talk<'a> {
    pidfd: OwnedFd,
    input: &'a [u8],
    stdin: Option<OwnedFd>,
    out: Option<OwnedFd>,
    err: Option<OwnedFd>,
    stdout: Vec<u8>,
    stderr: VecDeque<u8>,
}

impl<'a> Talk<'a> {
    fn new(child: &mut Child, input: &'a [u8]) -> io::Result<Self> {
        let talk = Self {
            pidfd: pidfd_open(Pid::from_child(child), PidfdFlags::empty())?,
            input,
            stdin: child.stdin.take().map(OwnedFd::from),
            out: child.stdout.take().map(OwnedFd::from),
            err: child.stderr.take().map(OwnedFd::from),
            stdout: Vec::new(),
            stderr: VecDeque::new(),
        };
        for pipe in [&talk.stdin, &talk.out, &talk.err].into_iter().flatten() {
            let flags = rustix::fs::fcntl_getfl(pipe)?;
            rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?;
        }
        Ok(talk)
    }

    fn until_exit(&mut self, deadline: Instant) -> io::Result<End> {
        loop {
            let exited = match self.wait(deadline)? {
                Some(exited) => exited,
                None => return Ok(End::TimedOut),
            };
            self.write();
            let within_bounds = self.read_out()?;
            self.read_err()?;
            if !within_bounds {
                return Ok(End::TooMuch);
            }
            // What it wrote is in the pipes by now. A descendant that holds them
            // open any longer is not waited for.
            if exited {
                return Ok(End::Exited);
            }
        }
    }

    /// Waits until something can be done; whether it has exited, None at the
    /// deadline.
    fn wait(&self, deadline: Instant) -> io::Result<Option<bool>> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        fds.extend(self.stdin.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        fds.extend(
            [&self.out, &self.err]
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::IN)),
        );
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(fds.first().is_some_and(|fd| !fd.revents().is_empty()))),
            Err(Errno::INTR) if !left.is_zero() => Ok(Some(false)),
            Err(Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn write(&mut self) {
        while let Some(stdin) = &self.stdin {
            if self.input.is_empty() {
                self.stdin = None;
                return;
            }
            match rustix::io::write(stdin, self.input) {
                Ok(n) => self.input = self.input.get(n..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It does not want to read it all; its answer will tell.
                Err(_) => self.stdin = None,
            }
        }
    }

    /// Reads what is there; false when it is more than the bound.
    fn read_out(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        while let Some(n) = read_some(&mut self.out, &mut chunk)? {
            self.stdout.extend(chunk.iter().take(n));
            if self.stdout.len() > MAX_ANSWER_LEN {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_err(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4 << 10];
        // Bounded: a program that floods it must not keep us here past its deadline.
        for _ in 0..64 {
            let Some(n) = read_some(&mut self.err, &mut chunk)? else {
                return Ok(());
            };
            self.stderr.extend(chunk.iter().take(n));
            let excess = self.stderr.len().saturating_sub(ERROR_TAIL_LEN);
            self.stderr.drain(..excess);
        }
        Ok(())
    }

    fn error_text(&mut self) -> String {
        String::from_utf8_lossy(self.stderr.make_contiguous())
            .trim()
            .to_owned()
    }
}

/// Reads once; None when there is nothing (more). Closes the pipe at its end.
fn read_some(pipe: &mut Option<OwnedFd>, chunk: &mut [u8]) -> io::Result<Option<usize>> {
    let Some(fd) = pipe else { return Ok(None) };
    loop {
        match rustix::io::read(fd.as_fd(), &mut *chunk) {
            Ok(0) => {
                *pipe = None;
                return Ok(None);
            }
            Ok(n) => return Ok(Some(n)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}
