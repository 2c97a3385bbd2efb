//! Waiting for the end of a process by its descriptor.
#![expect(unsafe_code)]
// UNSAFETY: tokio's registration of a descriptor is unsafe, because it cannot
// know that a type keeps its descriptor open; OwnedFd does.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process's descriptor (pidfd), registered with the runtime.
#[derive(Debug)]
pub(crate) struct ProcessEnd(AsyncFd<OwnedFd>);

impl ProcessEnd {
    pub(crate) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd has one descriptor, the same for all of its life, and
        // keeps it open until it is dropped; AsyncFd drops it after it has taken
        // back the registration.
        let end = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self(end))
    }

    /// Waits until the process has ended.
    pub(crate) async fn wait(&self) {
        // Once readable, always readable; an error means it cannot be waited for,
        // and then nothing better than its end can be assumed.
        let _ = self.0.readable().await;
    }
}
