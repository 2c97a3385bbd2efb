//! A device's call to itself: "poll me again, I stopped before I was done".

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An eventfd that a device raises when it gave up its turn with work left.
#[derive(Debug)]
pub(crate) struct Wakeup {
    /// `None` if the process had no descriptor left when the device was made:
    /// the device then never gives up its turn.
    fd: Option<OwnedFd>,
}

impl Wakeup {
    pub(crate) fn new() -> Self {
        Wakeup {
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
        }
    }

    /// Makes the descriptor readable. `false`: it cannot be, work on.
    pub(crate) fn raise(&self) -> bool {
        self.fd
            .as_ref()
            .is_some_and(|fd| rustix::io::write(fd, &1u64.to_ne_bytes()).is_ok())
    }

    /// Takes the call back.
    pub(crate) fn clear(&self) {
        if let Some(fd) = &self.fd {
            // Empty when nothing was raised: nothing to take back then.
            let _ = rustix::io::read(fd, &mut [0u8; 8]);
        }
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_readable(wakeup: &Wakeup) -> bool {
        let fd = wakeup.fd().expect("an eventfd");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).expect("poll") == 1
    }

    #[test]
    fn stays_readable_until_cleared() {
        let wakeup = Wakeup::new();
        assert!(!is_readable(&wakeup));
        assert!(wakeup.raise());
        assert!(wakeup.raise());
        assert!(is_readable(&wakeup));
        wakeup.clear();
        assert!(!is_readable(&wakeup));
        wakeup.clear();
    }
}
