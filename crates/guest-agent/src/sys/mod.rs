//! System calls that rustix and nix do not offer safely. Everything `unsafe` in
//! the agent lives here, behind safe functions.

pub(crate) mod block;
pub(crate) mod clock;
pub(crate) mod device_filter;
pub(crate) mod entropy;
pub(crate) mod link;
pub(crate) mod mount_attr;
pub(crate) mod process;
pub(crate) mod quota;
pub(crate) mod seccomp;

use rustix::io::Errno;

/// The result of a raw system call: -1 means errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 {
        Err(last_errno())
    } else {
        Ok(result)
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
