//! The host's end of the device: one queue of a TAP.
#![expect(unsafe_code, reason = "the tun driver is configured by ioctl")]
// UNSAFETY: libc::ioctl on a TAP's descriptor; no crate in the tree wraps these
// calls.

use super::header::HEADER_LEN;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No queue pair, or more than a device can have.
    #[error("{0} TAP descriptors came for one device; it can have 1 to {max}", max = super::MAX_QUEUE_PAIRS)]
    Pairs(usize),
    /// The descriptor is of something else.
    #[error("a descriptor is no queue of a TAP interface")]
    NoTap(#[source] io::Error),
    /// The TAP frames its packets in another way.
    #[error("the TAP was opened with flags {0:#x}; IFF_TAP, IFF_NO_PI and IFF_VNET_HDR are needed")]
    Flags(i32),
    /// No interface has such an MTU.
    #[error("an MTU of {0} bytes; it must be 68 to {max}", max = super::device::MAX_MTU)]
    Mtu(u32),
    /// Not the address of one station.
    #[error("the address is none of a single Ethernet station")]
    Mac,
    /// Something of the host failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// One queue of a TAP.
#[derive(Debug)]
pub(crate) struct Tap {
    fd: OwnedFd,
    /// The other end of a socket that stands for a TAP in tests.
    #[cfg(test)]
    pub(super) peer: Option<OwnedFd>,
}

impl Tap {
    /// Takes an opened TAP queue and sets it up: no waiting, headers of
    /// [`HEADER_LEN`] bytes, no offloads.
    pub(super) fn new(fd: OwnedFd) -> Result<Tap, NetError> {
        // SAFETY: ifreq is a C structure of integers and byte arrays; all zero
        // is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq; `request` is one, borrowed mutably
        // for the call. A descriptor of something else refuses the number.
        let got = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        done(got).map_err(NetError::NoTap)?;
        // SAFETY: the call above set this member of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let kind = libc::IFF_TUN | libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & kind != libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR {
            return Err(NetError::Flags(flags));
        }
        let host = |what| move |source| NetError::Host { what, source };
        fcntl_getfl(&fd)
            .and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
            .map_err(|e| host("make the TAP non-blocking")(e.into()))?;
        let len = libc::c_int::try_from(HEADER_LEN).unwrap_or(libc::c_int::MAX);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
        done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
            .map_err(host("set the header of the TAP"))?;
        let tap = Tap {
            fd,
            #[cfg(test)]
            peer: None,
        };
        tap.set_offloads(0)
            .map_err(host("switch the offloads of the TAP off"))?;
        Ok(tap)
    }

    /// The host may give what a driver with `features` takes: frames without
    /// checksums, TCP segments of up to 64 KiB.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.peer.is_some() {
            return Ok(());
        }
        let mut offloads = 0;
        for (feature, offload) in [
            (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
        ] {
            // Without the first of them the others mean nothing.
            if features & 1 << feature != 0 && features & 1 << VIRTIO_NET_F_GUEST_CSUM != 0 {
                offloads |= offload;
            }
        }
        let offloads = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        done(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
    }

    /// Has the host spread frames over this queue, or leave it out. Of a TAP
    /// with several queues only.
    pub(super) fn attach(&self, attach: bool) -> io::Result<()> {
        #[cfg(test)]
        if self.peer.is_some() {
            return Ok(());
        }
        // SAFETY: as in `new`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if attach {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).unwrap_or(0);
        // SAFETY: TUNSETQUEUE reads one ifreq; `request` lives through the call.
        done(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
impl Tap {
    /// A socket pair that keeps packets apart as a TAP does.
    pub(crate) fn stand_in() -> Tap {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (fd, peer) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .expect("a socket pair");
        Tap {
            fd,
            peer: Some(peer),
        }
    }

    /// A stand-in in which frames wait for the guest.
    pub(crate) fn with_frames(count: usize) -> Tap {
        let tap = Tap::stand_in();
        for _ in 0..count {
            let peer = tap.peer.as_ref().expect("a stand-in");
            rustix::io::write(peer, &[0; HEADER_LEN + 60]).expect("room");
        }
        tap
    }
}
