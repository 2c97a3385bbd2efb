//! Our own terminal while it is a container's: raw, its size passed on, and as it
//! was on every way out.

use pod_api::v1::TerminalSize;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic;
use std::sync::{Mutex, Once, PoisonError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// The terminal in raw mode, and what it was before.
static CHANGED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A terminal in raw mode until this is dropped, or until a panic: in a release
/// build that ends us without a drop.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Of our standard input; `None` where that is no terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        Self::of(io::stdin())
    }

    fn of(terminal: impl AsFd) -> io::Result<Option<Self>> {
        if !isatty(&terminal) {
            return Ok(None);
        }
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        give_back_at_panics();
        let mut changed = CHANGED.lock().unwrap_or_else(PoisonError::into_inner);
        let (terminal, _) = changed.insert((terminal, before));
        // Not once its output is drained: who shows it may have stopped.
        tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }

    /// Waits until our terminal, which is our standard input, has gone. SIGHUP does not
    /// tell of it where we are not the terminal's, or where whoever started us ignores
    /// that signal (nohup).
    pub(crate) async fn gone(&self) -> io::Result<()> {
        gone(io::stdin().as_fd().try_clone_to_owned()?).await;
        Ok(())
    }
}

/// Waits by a thread of its own, which must not hold up our end.
async fn gone(terminal: OwnedFd) {
    let (told, gone) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _told = told;
        // What is always told: that it has gone, not that something was typed.
        let mut terminal = [PollFd::new(&terminal, PollFlags::empty())];
        while poll(&mut terminal, None) == Err(Errno::INTR) {}
    });
    let _ = gone.await;
}

impl Drop for Raw {
    fn drop(&mut self) {
        give_back();
    }
}

/// Makes the terminal what it was.
fn give_back() {
    let mut changed = CHANGED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((terminal, before)) = changed.take() {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(terminal, OptionalActions::Now, &before);
    }
}

/// Before a panic is told of, so that what it says has whole lines.
fn give_back_at_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            tell(panic);
        }));
    });
}

/// The size of our terminal, if we have one.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    let size = size.ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| TerminalSize {
        columns: size.ws_col.into(),
        rows: size.ws_row.into(),
    })
}

/// What ends us or changes the terminal's size.
#[derive(Debug)]
pub(crate) struct Signals {
    resize: Signal,
    ends: [(i32, Signal); 4],
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Resize,
    /// A signal of this number that would have ended us.
    End(i32),
}

impl Signals {
    /// From now on they end us no more by themselves.
    pub(crate) fn catch() -> io::Result<Self> {
        let end = |kind: SignalKind| io::Result::Ok((kind.as_raw_value(), signal(kind)?));
        Ok(Self {
            resize: signal(SignalKind::window_change())?,
            ends: [
                end(SignalKind::interrupt())?,
                end(SignalKind::terminate())?,
                end(SignalKind::hangup())?,
                end(SignalKind::quit())?,
            ],
        })
    }

    /// The next; may be dropped half-way.
    pub(crate) async fn next(&mut self) -> Came {
        let [a, b, c, d] = &mut self.ends;
        tokio::select! {
            _ = self.resize.recv() => Came::Resize,
            _ = a.1.recv() => Came::End(a.0),
            _ = b.1.recv() => Came::End(b.0),
            _ = c.1.recv() => Came::End(c.0),
            _ = d.1.recv() => Came::End(d.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::LocalModes;
    use std::time::Duration;

    /// What shows a terminal, and the terminal.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let shown = openpt(flags).unwrap();
        unlockpt(&shown).unwrap();
        let terminal = ioctl_tiocgptpeer(&shown, flags).unwrap();
        (shown, terminal)
    }

    #[tokio::test]
    async fn terminal_that_goes_is_noticed_and_typing_is_not_its_end() {
        let (shown, terminal) = terminal();
        let mut raw = tcgetattr(&terminal).unwrap();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).unwrap();
        let mut gone = std::pin::pin!(gone(terminal.try_clone().unwrap()));
        for _ in 0..2 {
            // ^D ends no input that is raw.
            rustix::io::write(&shown, b"x\x04").unwrap();
            let told = tokio::time::timeout(Duration::from_millis(50), &mut gone).await;
            assert!(told.is_err());
        }
        drop(shown);
        gone.await;
    }

    #[test]
    fn terminal_is_given_back_by_a_drop_and_by_a_panic() {
        let (_shown, terminal) = terminal();
        let is_raw = || {
            let modes = tcgetattr(&terminal).unwrap().local_modes;
            !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
        };
        assert!(!is_raw());
        let raw = Raw::of(&terminal).unwrap().unwrap();
        assert!(is_raw());
        drop(raw);
        assert!(!is_raw());

        // Nothing is dropped where a panic aborts.
        std::mem::forget(Raw::of(&terminal).unwrap());
        assert!(is_raw());
        let panicked = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(panicked.is_err());
        assert!(!is_raw());

        let file = tempfile::tempfile().unwrap();
        assert!(Raw::of(&file).unwrap().is_none());
    }
}
