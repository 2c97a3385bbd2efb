//! What is known of a connection's streams, shared by its reader, its writer and
//! those who use the streams: who may still speak, and how much.

use crate::backlog::{Backlog, Break};
use crate::input::InputSender;
use crate::output::Gone;
use std::collections::{BTreeMap, HashMap};
use std::mem::take;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The window that streams and the connection begin with.
pub(super) const WINDOW: i64 = 64 << 10;
/// Bytes taken from a stream before its peer is told.
const TELL: u32 = 32 << 10;
/// The number of the connection's own window.
const CONNECTION: u32 = 0;

/// The streams of a connection.
#[derive(Debug)]
pub(super) struct Streams {
    state: Mutex<State>,
    /// There is more window, or a stream less.
    changed: Notify,
    /// There are credits to tell.
    pub(super) credited: Notify,
}

#[derive(Debug)]
struct State {
    streams: HashMap<u32, Stream>,
    /// The highest number that was opened.
    last: u32,
    /// What the peer's windows leave, below zero where they came to be known late.
    window: i64,
    initial_window: i64,
    /// The peer has shown that it keeps windows.
    windows_count: bool,
    /// Bytes taken and not told, by stream.
    credits: BTreeMap<u32, u32>,
}

#[derive(Debug)]
struct Stream {
    /// `None`: the peer has said all.
    input: Option<Arc<InputSender>>,
    /// What waits of it.
    backlog: Option<Arc<Backlog>>,
    /// We have said all.
    finished: bool,
    window: i64,
}

/// Where the data of a stream goes.
#[derive(Debug)]
pub(super) enum Target {
    /// There.
    Input(Arc<InputSender>),
    /// Nowhere: the stream is over, the peer may not know yet.
    Over,
    /// The peer never opened it.
    Unknown,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                streams: HashMap::new(),
                last: 0,
                window: WINDOW,
                initial_window: WINDOW,
                windows_count: false,
                credits: BTreeMap::new(),
            }),
            changed: Notify::new(),
            credited: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest number that was opened.
    pub(super) fn last(&self) -> u32 {
        self.lock().last
    }

    /// Claims a number for a new stream; false: it cannot be one.
    pub(super) fn claim(&self, stream: u32) -> bool {
        let mut state = self.lock();
        let fits = stream % 2 == 1 && stream > state.last;
        if fits {
            state.last = stream;
        }
        fits
    }

    pub(super) fn open(&self, stream: u32, input: Option<InputSender>, finished: bool) {
        let mut state = self.lock();
        let window = state.initial_window;
        let entry = Stream {
            backlog: input.as_ref().map(|input| Arc::clone(input.backlog())),
            input: input.map(Arc::new),
            finished,
            window,
        };
        state.streams.insert(stream, entry);
    }

    pub(super) fn count(&self) -> usize {
        self.lock().streams.len()
    }

    pub(super) fn target(&self, stream: u32) -> Target {
        let state = self.lock();
        match state.streams.get(&stream) {
            Some(Stream {
                input: Some(input), ..
            }) => Target::Input(Arc::clone(input)),
            None if stream > state.last || stream.is_multiple_of(2) => Target::Unknown,
            _ => Target::Over,
        }
    }

    /// The peer has said all.
    pub(super) fn end_input(&self, stream: u32) {
        let mut state = self.lock();
        if let Some(entry) = state.streams.get_mut(&stream) {
            entry.input = None;
            if entry.finished {
                state.streams.remove(&stream);
            }
        }
    }

    /// We have said all; whether the peer is still to be told.
    pub(super) fn finish(&self, stream: u32) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.streams.get_mut(&stream) else {
            return false;
        };
        let first = !entry.finished;
        entry.finished = true;
        if entry.input.is_none() {
            state.streams.remove(&stream);
        }
        first
    }

    /// The stream is over both ways; whether it was not so yet.
    pub(super) fn remove(&self, stream: u32) -> bool {
        let removed = self.lock().streams.remove(&stream);
        if let Some(backlog) = removed.as_ref().and_then(|entry| entry.backlog.as_ref()) {
            backlog.break_off(Break::Reset);
        }
        self.changed.notify_waiters();
        removed.is_some()
    }

    /// The peer gives a new stream this window, and the others the difference.
    pub(super) fn set_initial_window(&self, window: u32) {
        let mut state = self.lock();
        let more = i64::from(window) - state.initial_window;
        state.initial_window = window.into();
        state.windows_count = true;
        for stream in state.streams.values_mut() {
            stream.window += more;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The peer takes more; false: more than there can be.
    pub(super) fn widen(&self, stream: u32, delta: u32) -> bool {
        let mut state = self.lock();
        state.windows_count = true;
        let window = match stream {
            CONNECTION => Some(&mut state.window),
            _ => state.streams.get_mut(&stream).map(|s| &mut s.window),
        };
        let fits = window.is_none_or(|window| {
            *window += i64::from(delta);
            *window <= i64::from(i32::MAX)
        });
        drop(state);
        self.changed.notify_waiters();
        fits
    }

    /// Waits until the peer takes some of `wanted` bytes; says how many.
    pub(super) async fn room(&self, stream: u32, wanted: usize) -> Result<usize, Gone> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(room) = self.lock().take_room(stream, wanted)? {
                return Ok(room);
            }
            changed.await;
        }
    }

    /// Bytes of a stream were taken.
    pub(super) fn credit(&self, stream: u32, bytes: usize) {
        let mut state = self.lock();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        for number in [stream, CONNECTION] {
            let credit = state.credits.entry(number).or_default();
            *credit = credit.saturating_add(bytes);
            if *credit >= TELL {
                self.credited.notify_one();
            }
        }
    }

    /// The credits that are large enough to be told, once.
    pub(super) fn take_credits(&self) -> Vec<(u32, u32)> {
        let mut state = self.lock();
        let (tell, keep) = take(&mut state.credits)
            .into_iter()
            .partition(|&(_, credit)| credit >= TELL);
        state.credits = keep;
        // What is left of streams that are over is told to nobody.
        let State {
            streams, credits, ..
        } = &mut *state;
        credits.retain(|number, _| *number == CONNECTION || streams.contains_key(number));
        let tell: BTreeMap<u32, u32> = tell;
        tell.into_iter().collect()
    }
}

impl State {
    fn take_room(&mut self, stream: u32, wanted: usize) -> Result<Option<usize>, Gone> {
        let entry = self.streams.get_mut(&stream).ok_or(Gone)?;
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let room = if self.windows_count {
            wanted.min(entry.window).min(self.window)
        } else {
            wanted
        };
        let Some(bytes) = usize::try_from(room).ok().filter(|&bytes| bytes > 0) else {
            return Ok(None);
        };
        entry.window -= room;
        self.window -= room;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn room(streams: &Streams, stream: u32, wanted: usize) -> Option<Result<usize, Gone>> {
        streams.room(stream, wanted).now_or_never()
    }

    #[test]
    fn windows_count_from_their_first_sign_and_from_the_first_byte() {
        let streams = Streams::new();
        streams.open(1, None, false);
        let sent = 100 << 10;
        assert_eq!(room(&streams, 1, sent), Some(Ok(sent)));
        // The stream and the connection each have 64 KiB less 100.
        assert!(streams.widen(1, 36 << 10));
        assert_eq!(room(&streams, 1, 1), None);
        assert!(streams.widen(0, 36 << 10));
        assert_eq!(room(&streams, 1, 1), None);
        assert!(streams.widen(1, 5));
        assert!(streams.widen(0, 3));
        assert_eq!(room(&streams, 1, 10), Some(Ok(3)));
        assert_eq!(room(&streams, 1, 10), None);
        // A window that grows beyond its type.
        assert!(!streams.widen(1, 0x7fff_ffff));
    }

    #[test]
    fn new_initial_window_reaches_open_streams() {
        let streams = Streams::new();
        streams.open(1, None, false);
        streams.set_initial_window(10);
        assert_eq!(room(&streams, 1, 100), Some(Ok(10)));
        streams.set_initial_window(0);
        assert_eq!(room(&streams, 1, 100), None);
        streams.set_initial_window(15);
        assert_eq!(room(&streams, 1, 100), Some(Ok(5)));
    }

    #[tokio::test]
    async fn one_that_waits_for_room_hears_of_it_and_of_the_end() {
        let streams = Streams::new();
        streams.open(1, None, false);
        streams.set_initial_window(0);
        let (got, ()) = tokio::join!(streams.room(1, 5), async {
            tokio::task::yield_now().await;
            streams.widen(1, 2);
        });
        assert_eq!(got, Ok(2));
        let (got, ()) = tokio::join!(streams.room(1, 5), async {
            tokio::task::yield_now().await;
            assert!(streams.remove(1));
        });
        assert_eq!(got, Err(Gone));
        assert!(!streams.remove(1));
    }

    #[test]
    fn stream_is_over_when_both_have_said_all() {
        let streams = Streams::new();
        for (first, stream) in [(true, 1), (false, 3)] {
            streams.open(stream, None, false);
            if first {
                streams.finish(stream);
            }
            streams.end_input(stream);
            if !first {
                assert_eq!(streams.count(), 1);
                streams.finish(stream);
            }
            assert_eq!(streams.count(), 0);
        }
    }

    #[test]
    fn numbers_are_odd_and_grow() {
        let streams = Streams::new();
        for (stream, fits) in [(1, true), (1, false), (5, true), (3, false), (6, false)] {
            assert_eq!(streams.claim(stream), fits, "{stream}");
        }
        assert_eq!(streams.last(), 5);
    }

    #[test]
    fn credits_are_told_in_large_steps() {
        let streams = Streams::new();
        streams.open(1, None, false);
        streams.credit(1, 1000);
        assert!(streams.take_credits().is_empty());
        streams.credit(1, TELL as usize);
        let sum = TELL + 1000;
        assert_eq!(streams.take_credits(), [(0, sum), (1, sum)]);
        assert!(streams.take_credits().is_empty());
    }
}
