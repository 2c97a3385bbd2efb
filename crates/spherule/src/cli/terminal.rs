//! Our own terminal while it is a container's: raw, its size passed on, and as it
//! was on every way out.

use pod_api::v1::TerminalSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A terminal in raw mode until this is dropped.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Of our standard input; `None` where that is no terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Not once its output is drained: who shows it may have stopped.
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
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
