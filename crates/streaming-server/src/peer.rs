//! The other end of a connection: whether it is still there, and when it last
//! moved.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// How often a peer that nobody reads from is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The peer of one connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Another descriptor of the connection's socket, only looked at.
    socket: OwnedFd,
    moved: Mutex<Instant>,
}

impl Peer {
    /// Of the connection that `socket` is.
    pub(crate) fn new(socket: &impl AsFd) -> std::io::Result<Self> {
        Ok(Self {
            socket: socket.as_fd().try_clone_to_owned()?,
            moved: Mutex::new(Instant::now()),
        })
    }

    /// Bytes went, one way or the other.
    pub(crate) fn moved(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when the peer has closed its end. For those who cannot read, because
    /// nobody takes what is read: to a reader the end comes after the data. Where the
    /// peer's kernel has more of these than it can send, it keeps the end back, too;
    /// but spoken to, for which `nudge` is called after each `pause`, it answers with a
    /// reset that nobody is there (RFC 1122, 4.2.2.13).
    pub(crate) async fn gone(&self, pause: Duration, nudge: impl Fn()) {
        let mut next = Instant::now() + pause;
        while !self.has_closed() {
            sleep(LOOK.min(pause)).await;
            if next <= Instant::now() {
                nudge();
                next += pause;
            }
        }
    }

    fn has_closed(&self) -> bool {
        let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.socket, closed)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Returns when nothing has moved for that long.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let moved = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(until) = moved.checked_add(limit) else {
                return std::future::pending().await;
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
impl Peer {
    /// A peer that lives as long as the returned socket.
    pub(crate) fn pair() -> (Self, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        (Self::new(&ours).unwrap(), theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test(start_paused = true)]
    async fn end_is_seen_behind_data_that_nobody_reads() {
        let (peer, mut theirs) = Peer::pair();
        theirs.write_all(b"unread").unwrap();
        assert!(!peer.has_closed());
        drop(theirs);
        peer.gone(LOOK, || {}).await;
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_begins_anew_with_each_move() {
        let (peer, _theirs) = Peer::pair();
        let start = Instant::now();
        let limit = Duration::from_secs(60);
        let mover = async {
            sleep(Duration::from_secs(50)).await;
            peer.moved();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = peer.idle(limit) => {}
            () = mover => {}
        }
        assert_eq!(start.elapsed(), Duration::from_secs(110));
    }
}
