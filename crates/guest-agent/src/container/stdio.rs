//! A container's standard streams: pipes, or a terminal.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Uid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The agent's ends, non-blocking. A terminal's appear when it is made.
#[derive(Debug, Default)]
pub(crate) struct AgentStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The child's ends.
#[derive(Debug)]
pub(crate) enum ChildStdio {
    /// A terminal is to be made in the container; `console`: it is /dev/console
    /// too, as the first process's is.
    Terminal { console: bool },
    /// Without stdin: /dev/null.
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
}

impl ChildStdio {
    /// Its descriptors.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Terminal { .. } => Vec::new(),
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => stdin
                .iter()
                .chain([stdout, stderr])
                .map(AsFd::as_fd)
                .collect(),
        }
    }
}

/// Both ends of everything.
pub(crate) fn create(terminal: bool, with_stdin: bool) -> Result<(AgentStdio, ChildStdio), Errno> {
    if terminal {
        let child = ChildStdio::Terminal { console: true };
        return Ok((AgentStdio::default(), child));
    }
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (in_read, in_write) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (Some(read), Some(write))
    } else {
        (None, None)
    };
    rustix::io::ioctl_fionbio(&out_read, true)?;
    rustix::io::ioctl_fionbio(&err_read, true)?;
    let agent = AgentStdio {
        stdin: in_write,
        stdout: Some(out_read),
        stderr: Some(err_read),
    };
    let child = ChildStdio::Pipes {
        stdin: in_read,
        stdout: out_write,
        stderr: err_write,
    };
    Ok((agent, child))
}

/// The agent's ends of a terminal whose master is `master`.
pub(crate) fn of_terminal(master: OwnedFd, with_stdin: bool) -> Result<AgentStdio, Errno> {
    rustix::io::ioctl_fionbio(&master, true)?;
    let stdin = if with_stdin {
        Some(rustix::io::fcntl_dupfd_cloexec(&master, 3)?)
    } else {
        None
    };
    Ok(AgentStdio {
        stdin,
        stdout: Some(master),
        stderr: None,
    })
}

/// Child, in the container's root: makes descriptors 0 to 2 of `stdio`, owned by
/// `uid` so that it may open /dev/stdout again. Returns a terminal's master.
pub(crate) fn install(stdio: &ChildStdio, uid: Uid) -> Result<Option<OwnedFd>, Errno> {
    let owner = Some(uid);
    match stdio {
        ChildStdio::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            for pipe in stdin.iter().chain([stdout, stderr]) {
                rustix::fs::fchown(pipe, owner, None)?;
            }
            if let Some(stdin) = stdin {
                rustix::stdio::dup2_stdin(stdin)?;
            } else {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
                rustix::stdio::dup2_stdin(&null)?;
            }
            rustix::stdio::dup2_stdout(stdout)?;
            rustix::stdio::dup2_stderr(stderr)?;
            Ok(None)
        }
        ChildStdio::Terminal { console } => install_terminal(owner, *console).map(Some),
    }
}

/// statfs(2)'s number of devpts, linux/magic.h.
const DEVPTS: i64 = 0x1cd1;

fn install_terminal(owner: Option<Uid>, console: bool) -> Result<OwnedFd, Errno> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
    // A container that may mount could put anything there; the agent, which
    // reads and writes it, must never be blocked by it.
    if rustix::fs::fstatfs(&master)?.f_type != DEVPTS {
        return Err(Errno::NOTTY);
    }
    unlockpt(&master)?;
    let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = ioctl_tiocgptpeer(&master, open)?;
    rustix::fs::fchown(&terminal, owner, None)?;
    rustix::process::ioctl_tiocsctty(&terminal)?;
    if console {
        bind_console(&master)?;
    }
    rustix::stdio::dup2_stdin(&terminal)?;
    rustix::stdio::dup2_stdout(&terminal)?;
    rustix::stdio::dup2_stderr(&terminal)?;
    Ok(master)
}

/// Makes /dev/console this terminal, as in other runtimes.
fn bind_console(master: &OwnedFd) -> Result<(), Errno> {
    let console = rustix::fs::open(
        "/dev/console",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let name = rustix::pty::ptsname(master, Vec::new())?;
    let node = rustix::fs::open(
        name.as_c_str(),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let bound = crate::fs_mount::bind(&node)?;
    crate::fs_mount::attach(&bound, &console)
}
