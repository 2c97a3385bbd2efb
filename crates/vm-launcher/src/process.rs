//! A spherule-vmm process, one's own child or one that an earlier daemon
//! started.

use crate::client::{self, VmmClient};
use crate::error::{ClientError, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a process may take until it listens: milliseconds, but for a host
/// under heavy load.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between attempts to connect: the process is ready after about 5 ms.
const CONNECT_RETRY: Duration = Duration::from_millis(1);
/// Bytes of the log that an error carries.
const LOG_TAIL: u64 = 2048;

/// A VMM process. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct VmmProcess {
    pid: u32,
    start_time: u64,
    pidfd: OwnedFd,
    dir: PathBuf,
    log: Option<File>,
}

impl VmmProcess {
    pub(crate) fn of_child(pid: u32, dir: &Path, log: File) -> Result<Self, LaunchError> {
        let pidfd = open_pidfd(pid)?;
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            pidfd,
            dir: dir.to_owned(),
            log: Some(log),
        })
    }

    /// Finds the process that an earlier daemon started for `dir`, by what
    /// [`VmmProcess::pid`] and [`VmmProcess::start_time`] said then.
    ///
    /// # Errors
    /// [`LaunchError::Gone`] if it has ended, whoever has its number now.
    pub fn adopt(dir: &Path, pid: u32, start_time: u64) -> Result<Self, LaunchError> {
        let gone = || LaunchError::Gone { pid };
        // First the descriptor, which stays with its process, then the checks.
        let pidfd = open_pidfd(pid)?;
        if self::start_time(pid)? != start_time {
            return Err(gone());
        }
        // Start times count from the boot of the host, so a record of an earlier
        // boot might fit by chance; its directory would not.
        let works_in = std::fs::read_link(format!("/proc/{pid}/cwd")).map_err(|_| gone())?;
        let expected = dir.canonicalize().map_err(|_| gone())?;
        if works_in != expected {
            return Err(gone());
        }
        let process = Self {
            pid,
            start_time,
            pidfd,
            dir: dir.to_owned(),
            log: None,
        };
        if process.has_ended() {
            return Err(gone());
        }
        Ok(process)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since the boot of the host: with the
    /// process id, enough to find it again.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// The VM's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.poll(Some(Duration::ZERO))
    }

    /// Waits for its end, and takes its status if it is a child of this process,
    /// which leaves no zombie. Blocks.
    pub fn wait_exit(&self) {
        while !self.poll(None) {}
        self.reap();
    }

    /// As [`VmmProcess::wait_exit`], for at most `timeout`; whether it ended.
    pub fn wait_exit_timeout(&self, timeout: Duration) -> bool {
        let ended = self.poll(Some(timeout));
        if ended {
            self.reap();
        }
        ended
    }

    /// Kills it, and with it whatever runs for it. That it has ended is as good.
    pub fn kill(&self) {
        // Fails only if it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Connects to its control socket; waits until it listens. Blocks.
    ///
    /// # Errors
    /// [`ClientError::Died`] with the end of its log, if it does not live to.
    pub fn connect(&self) -> Result<VmmClient, ClientError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            // Asked first: a process that ends after the attempt gets another.
            let ended = self.has_ended();
            let error = match VmmClient::try_connect(&self.dir) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if ended {
                self.reap();
                return Err(match client::exit_record(&self.dir) {
                    Some(exit) => ClientError::Ended(exit),
                    None => ClientError::Died {
                        log: self.log_tail(),
                    },
                });
            }
            if !matches!(error, ClientError::Unreachable { .. }) || Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(CONNECT_RETRY);
        }
    }

    /// Waits for the end; false if `timeout` passes first.
    fn poll(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                // A duration too long for the kernel's type: for ever.
                Timespec::try_from(left).unwrap_or(Timespec {
                    tv_sec: i64::MAX,
                    tv_nsec: 0,
                })
            });
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                // Cannot happen to a valid descriptor; asked again by the caller.
                Err(_) => return false,
            }
        }
    }

    /// Takes the status of an ended child.
    fn reap(&self) {
        // Refused where it is no child of ours, or was reaped already.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
    }

    /// The end of its log, if it can be read.
    fn log_tail(&self) -> String {
        let read = || -> io::Result<String> {
            let log = self.log.as_ref().ok_or(io::ErrorKind::NotFound)?;
            let len = log.metadata()?.len();
            let start = len.saturating_sub(LOG_TAIL);
            let mut bytes = vec![0; usize::try_from(len - start).unwrap_or(0)];
            log.read_exact_at(&mut bytes, start).or_else(|_| {
                // Open for writing only.
                File::open(format!("/proc/self/fd/{}", log.as_raw_fd()))?
                    .read_exact_at(&mut bytes, start)
            })?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        match read() {
            Ok(text) if !text.is_empty() => text,
            _ => "it left no message".into(),
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        // No zombie of a child that has ended; one that runs is left alone.
        self.reap();
    }
}

fn open_pidfd(pid: u32) -> Result<OwnedFd, LaunchError> {
    let gone = LaunchError::Gone { pid };
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Err(gone);
    };
    pidfd_open(number, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH => gone,
        error => LaunchError::Inspect {
            pid,
            source: error.into(),
        },
    })
}

/// The start time of a process: field 22 of proc(5) stat.
fn start_time(pid: u32) -> Result<u64, LaunchError> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_err(|_| LaunchError::Gone { pid })?;
    parse_start_time(&stat).ok_or_else(|| LaunchError::Inspect {
        pid,
        source: io::ErrorKind::InvalidData.into(),
    })
}

/// The second field is the program's name in parentheses, which may itself hold
/// spaces and parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        for name in ["cat", "a b", "x) (y", ")"] {
            let stat = format!("12 ({name}) {}\n", fields.join(" "));
            assert_eq!(parse_start_time(&stat), Some(22), "{name}");
        }
        assert_eq!(parse_start_time("12 (cut"), None);
        assert_eq!(parse_start_time("12 (cut) R 1"), None);
    }

    #[test]
    fn number_of_another_process_is_not_adopted() {
        let pid = std::process::id();
        let here = std::env::current_dir().unwrap();
        let started = start_time(pid).unwrap();
        assert!(VmmProcess::adopt(&here, pid, started).is_ok());
        for (dir, start) in [(here.as_path(), started + 1), (Path::new("/proc"), started)] {
            let got = VmmProcess::adopt(dir, pid, start);
            assert!(matches!(got, Err(LaunchError::Gone { .. })));
        }
        for pid in [0, u32::MAX, 0x3fff_ffff] {
            let got = VmmProcess::adopt(&here, pid, started);
            assert!(got.is_err());
        }
    }
}
