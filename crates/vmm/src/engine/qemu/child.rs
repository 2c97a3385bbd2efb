//! QEMU as a child that cannot outlive this process.
//!
//! It gets descriptors instead of paths, its messages are kept for errors, and
//! the kernel kills it when this process ends in whatever way.
#![expect(unsafe_code)]
// UNSAFETY: what is done between fork and exec (pre_exec) is unsafe by nature:
// only async-signal-safe calls are allowed there. Nothing else here is unsafe.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes of its messages that are kept: the last ones.
const KEEP_STDERR: usize = 4096;

/// A started QEMU.
pub(super) struct Qemu {
    child: Child,
    stderr: JoinHandle<()>,
    tail: Arc<Mutex<VecDeque<u8>>>,
}

/// Sends signals to a QEMU that another thread waits for.
pub(super) struct Killer {
    pidfd: OwnedFd,
    pid: u32,
}

impl Killer {
    /// Kills it. That it is gone already is as good.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

impl Qemu {
    /// Starts `command`, which inherits `fds` under their numbers here.
    ///
    /// The child dies with the calling *thread* (PR_SET_PDEATHSIG), so this must
    /// be the thread that then waits for it.
    pub(super) fn spawn(mut command: Command, fds: Vec<OwnedFd>) -> io::Result<(Self, Killer)> {
        let inherited: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let parent = std::process::id();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: the closure runs in the forked child before exec. It makes
        // system calls only (prctl, getppid, fcntl) and reads memory that was
        // allocated before the fork; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(move || prepare_child(parent, &inherited));
        }
        let mut child = command.spawn()?;
        drop(fds);
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = match child.stderr.take() {
            Some(pipe) => keep_stderr(pipe, tail.clone()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let pidfd = Pid::from_raw(child.id().cast_signed())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match (stderr, pidfd) {
            (Ok(stderr), Ok(pidfd)) => {
                let killer = Killer {
                    pidfd,
                    pid: child.id(),
                };
                let qemu = Self {
                    child,
                    stderr,
                    tail,
                };
                Ok((qemu, killer))
            }
            (Err(e), _) | (_, Err(e)) => {
                // Not left behind half started.
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    /// Waits for its end; returns the status and the end of its messages.
    pub(super) fn wait(mut self) -> (io::Result<ExitStatus>, String) {
        let status = self.child.wait();
        let _ = self.stderr.join();
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        (status, String::from_utf8_lossy(&bytes).trim().to_owned())
    }
}

/// Between fork and exec: ends with its parent, inherits `fds`.
fn prepare_child(parent: u32, fds: &[RawFd]) -> io::Result<()> {
    // SAFETY: prctl with these arguments changes a flag of this process only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have ended before the flag was set.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    for &fd in fds {
        // SAFETY: changes a flag of a descriptor of this process, the child.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads its messages to the end in a thread, keeps the last ones.
fn keep_stderr(
    mut pipe: ChildStderr,
    tail: Arc<Mutex<VecDeque<u8>>>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("qemu-stderr".into())
        .spawn(move || {
            let mut piece = [0; 1024];
            loop {
                let got = match pipe.read(&mut piece) {
                    Ok(0) => return,
                    Ok(got) => got,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend(&piece[..got]);
                let excess = tail.len().saturating_sub(KEEP_STDERR);
                tail.drain(..excess);
            }
        })
}

/// How a process ended, in words.
pub(super) fn describe(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".into(),
        },
        Err(e) => format!("cannot be waited for: {e}"),
    }
}
