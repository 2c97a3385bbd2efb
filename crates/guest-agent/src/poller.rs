//! epoll: which descriptor woke the agent up, by a number given at registration.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Events taken at once.
const BATCH: usize = 32;

/// What woke the agent up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wakeup {
    /// The registration's number.
    pub(crate) token: u64,
    /// Readable, writable, hung up ...
    pub(crate) flags: EventFlags,
}

/// An epoll instance that numbers its registrations.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    next: u64,
}

impl Poller {
    /// A new one.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            next: 1,
        })
    }

    /// Registers a descriptor; closing it ends the registration. Numbers are
    /// never used again, so a late event cannot hit the wrong one.
    pub(crate) fn add(&mut self, fd: impl AsFd, flags: EventFlags) -> Result<u64, Errno> {
        let token = self.next;
        self.next += 1;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?;
        Ok(token)
    }

    /// Changes what a registered descriptor is watched for.
    pub(crate) fn watch(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags)
    }

    /// Ends a registration; for descriptors that live on.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits; no time limit where `timeout` is `None`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Vec<Wakeup>, Errno> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::<Event>::uninit(); BATCH];
        let (ready, _) = epoll::wait(&self.epoll, &mut events[..], timeout.as_ref())?;
        Ok(ready
            .iter()
            .map(|event| Wakeup {
                token: event.data.u64(),
                flags: event.flags,
            })
            .collect())
    }
}
