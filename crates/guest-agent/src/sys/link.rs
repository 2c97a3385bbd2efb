//! Bringing a network interface up.
#![expect(unsafe_code, reason = "ioctl with a union")]
// UNSAFETY: struct ifreq holds a union; the flags ioctls read and write its
// `ifru_flags` member only.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::os::fd::AsRawFd;

/// Sets IFF_UP on the interface `name` (at most 15 bytes).
pub(crate) fn set_up(name: &str) -> Result<(), Errno> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid ifreq: it is plain integers and arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::INVAL);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let fd = socket.as_raw_fd();
    // SAFETY: `request` is a whole ifreq with a terminated name, alive until the
    // call returns; the kernel writes the flags member.
    super::check(unsafe { libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request) }.into())?;
    // SAFETY: the call above set this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | 1; // IFF_UP
    // SAFETY: as above; the kernel only reads it.
    super::check(unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw mut request) }.into()).map(drop)
}
