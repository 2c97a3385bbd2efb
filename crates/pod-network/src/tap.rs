//! TAP interfaces: made in the calling thread's network namespace, and opened.
//!
//! The descriptors speak frames behind a virtio-net header of 12 bytes
//! ([`VNET_HEADER_LEN`]); offloads are off until whoever holds one asks for them
//! with TUNSETOFFLOAD.
#![expect(unsafe_code, reason = "the tun driver is configured by ioctl")]
// UNSAFETY: libc::ioctl on /dev/net/tun; no crate in the tree wraps these calls.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Length of the header before each frame, in bytes (virtio 1.2, 5.1.6, with
/// VIRTIO_F_VERSION_1).
pub const VNET_HEADER_LEN: u32 = 12;

/// What the names of our TAPs begin with.
const PREFIX: &str = "sphtap";

/// The name of the TAP at that place among a pod's.
pub(crate) fn name(place: usize) -> String {
    format!("{PREFIX}{place}")
}

/// Whether an interface of that name is one of our TAPs.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// A TAP could not be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The driver cannot be opened.
    #[error("cannot open /dev/net/tun; is the module tun loaded (modprobe tun)?")]
    Driver(#[source] io::Error),
    /// The name does not fit a network interface.
    #[error("{0:?} is no name for a network interface")]
    Name(String),
    /// An ioctl failed.
    #[error("cannot {step} TAP {name}")]
    Ioctl {
        /// What was tried.
        step: &'static str,
        /// The TAP's name.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The TAP is in use by another process.
    #[error("TAP {0} is held by another process; end the VM that uses it first")]
    Busy(String),
}

/// Makes or opens the TAP `name` with that many queues; a descriptor a queue,
/// non-blocking, closed on exec. The interface stays when they are closed.
pub(crate) fn open(name: &str, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    (0..queues.max(1))
        .map(|_| open_queue(name, queues > 1))
        .collect()
}

fn open_queue(name: &str, multi_queue: bool) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(|e| TapError::Driver(e.into()))?;
    let mut request = interface_request(name)?;
    let mut mode = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        mode |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags_of(mode);
    let ioctl_error = |step| {
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy(name.to_owned()),
            _ => TapError::Ioctl {
                step,
                name: name.to_owned(),
                source,
            },
        }
    };
    // SAFETY: TUNSETIFF reads and writes one ifreq; `request` is one, borrowed
    // mutably for the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        .map_err(ioctl_error("attach to"))?;
    let header = VNET_HEADER_LEN.cast_signed();
    // SAFETY: TUNSETVNETHDRSZ reads one int; `header` lives through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })
        .map_err(ioctl_error("set the header of"))?;
    // An earlier holder's offloads are not the next one's.
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, 0_u64) })
        .map_err(ioctl_error("reset the offloads of"))?;
    // SAFETY: TUNSETOWNER takes a number, no pointer. Without an owner anyone who
    // may open the driver could attach.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOWNER, 0_u64) })
        .map_err(ioctl_error("set the owner of"))?;
    // SAFETY: TUNSETPERSIST takes a number, no pointer.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, 1_u64) })
        .map_err(ioctl_error("keep"))?;
    Ok(fd)
}

/// The kernel's `ifr_flags` are 16 bits wide; libc has the flags as wider ones.
fn flags_of(mode: libc::c_int) -> libc::c_short {
    let [low, high, ..] = mode.to_le_bytes();
    libc::c_short::from_le_bytes([low, high])
}

fn interface_request(name: &str) -> Result<libc::ifreq, TapError> {
    // SAFETY: ifreq is a C structure of integers and byte arrays; all zero is a
    // valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the kernel wants a terminated name.
    let fits = (1..request.ifr_name.len()).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%');
    if !fits {
        return Err(TapError::Name(name.to_owned()));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    Ok(request)
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_fit_are_refused() {
        for name in ["", "sixteen-letters-", "a/b", "tap%d", "a b"] {
            assert!(
                matches!(interface_request(name), Err(TapError::Name(_))),
                "{name}"
            );
        }
        assert!(interface_request("fifteen-letters").is_ok());
    }
}
