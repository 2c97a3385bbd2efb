//! What comes from the peer on one stream, bounded: from the connection's reader to
//! who takes it.

use crate::backlog::{Backlog, Break};
use crate::output::Gone;
use crate::room::Room;
use crate::spill::{SpillError, SpillQueue};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Most bytes in one piece of input.
pub(crate) const PIECE: usize = 64 << 10;
/// What a piece costs beside its bytes.
const COST: usize = 128;
/// Pieces below this size are copied: they would keep the buffer that they came in.
const SMALL: usize = PIECE / 4;
/// How often is looked whether there is room again.
const LOOK: Duration = Duration::from_millis(100);

/// A stream's input. `taken` is told of each number of bytes that was taken.
pub(crate) fn input(
    room: &Arc<Room>,
    taken: Option<Box<dyn Fn(usize) + Send + Sync>>,
) -> (InputSender, Input) {
    let (pieces, received) = mpsc::unbounded_channel();
    let backlog = room.backlog();
    let sender = InputSender {
        pieces,
        backlog: Arc::clone(&backlog),
        room: Arc::clone(room),
        told: AtomicBool::new(false),
    };
    let input = Input {
        pieces: received,
        backlog,
        reading: None,
        taken,
    };
    (sender, input)
}

/// A piece, and the room that it takes while it waits.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Where a connection's reader puts the input of a stream. Dropped: the peer has
/// said all.
#[derive(Debug)]
pub(crate) struct InputSender {
    pieces: mpsc::UnboundedSender<Piece>,
    backlog: Arc<Backlog>,
    room: Arc<Room>,
    /// That it cannot be spilled was told.
    told: AtomicBool,
}

impl InputSender {
    /// What waits for the reader, also when the peer has said all.
    pub(crate) fn backlog(&self) -> &Arc<Backlog> {
        &self.backlog
    }

    /// Hands on bytes; waits while too many wait already. What nobody wants any
    /// more is dropped.
    pub(crate) async fn send(&self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let mut piece = bytes.split_to(bytes.len().min(PIECE));
            if piece.len() < SMALL {
                piece = Bytes::copy_from_slice(&piece);
            }
            let sent = match &self.backlog.spilled {
                None => self.keep(&piece).await,
                Some(spilled) => self.keep_or_spill(&piece, spilled).await,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// Keeps a piece in memory as soon as there is room.
    async fn keep(&self, piece: &Bytes) -> Result<(), Gone> {
        // Less than either has.
        let cost = u32::try_from(piece.len() + COST).unwrap_or(u32::MAX);
        let acquire = |of: &Arc<Semaphore>| Arc::clone(of).acquire_many_owned(cost);
        // It is closed with the stream.
        let own = acquire(&self.backlog.memory).await.map_err(|_| Gone)?;
        let shared = tokio::select! {
            biased;
            () = self.pieces.closed() => return Err(Gone),
            shared = acquire(&self.room.memory) => shared.map_err(|_| Gone)?,
        };
        self.backlog.add(piece.len());
        let piece = Piece {
            bytes: piece.clone(),
            _room: (own, shared),
        };
        self.pieces.send(piece).map_err(|_| Gone)
    }

    /// Keeps a piece, or puts it behind what was spilled already. Where there is no room
    /// either way for too long, one of the connection's streams has to go.
    async fn keep_or_spill(&self, piece: &Bytes, spilled: &SpillQueue) -> Result<(), Gone> {
        let mut since = Instant::now();
        loop {
            if spilled.is_empty() {
                let hopeless = self.room.hopeless.load(Ordering::Relaxed);
                let patience = if hopeless {
                    Duration::ZERO
                } else {
                    self.room.patience
                };
                let kept = timeout(patience, self.keep(piece)).await;
                self.room.hopeless.store(kept.is_err(), Ordering::Relaxed);
                if let Ok(kept) = kept {
                    return kept;
                }
            }
            self.backlog.add(piece.len());
            match spilled.put(piece).await {
                Ok(()) => {
                    self.backlog.more.notify_one();
                    return Ok(());
                }
                Err(error) => {
                    self.backlog.remove(piece.len());
                    if !matches!(error, SpillError::Full) {
                        self.tell(&error);
                        // There is nothing to be had by a stream's end.
                        since = Instant::now();
                    }
                }
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.pieces.closed() => return Err(Gone),
            }
            if since.elapsed() >= self.room.stalled {
                self.room.break_fullest();
                since = Instant::now();
            }
        }
    }

    /// Says, once, that there is less room than there should be.
    fn tell(&self, error: &SpillError) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, cause, "what a pod does not read stalls all that its client \
                says on the connection");
        }
    }
}

/// What comes from the peer on one stream.
pub(crate) struct Input {
    pieces: mpsc::UnboundedReceiver<Piece>,
    backlog: Arc<Backlog>,
    /// The first of what was spilled, on its way.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    taken: Option<Box<dyn Fn(usize) + Send + Sync>>,
}

impl Input {
    /// The next bytes; `None`: the peer has said all, [`Gone`]: or has broken off after
    /// these. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        loop {
            // What is in memory was there first. To be looked at in this order: as long
            // as something is spilled, nothing more comes to memory.
            let is_spilled = self.is_spilled();
            match self.pieces.try_recv() {
                Ok(piece) => return Ok(Some(self.took(piece.bytes))),
                Err(_) if is_spilled => return self.read().await.map(Some),
                Err(_) => {}
            }
            tokio::select! {
                piece = self.pieces.recv() => match piece {
                    Some(piece) => return Ok(Some(self.took(piece.bytes))),
                    None if self.is_spilled() => {}
                    None if self.backlog.is_broken() => return Err(Gone),
                    None => return Ok(None),
                },
                () = self.backlog.more.notified() => {}
            }
        }
    }

    /// Returns when the stream is broken.
    pub(crate) fn broken(&self) -> impl Future<Output = Break> + use<> {
        self.backlog.broken()
    }

    fn is_spilled(&self) -> bool {
        let spilled = self.backlog.spilled.as_ref();
        spilled.is_some_and(|spilled| !spilled.is_empty())
    }

    /// Takes the first of what was spilled.
    async fn read(&mut self) -> Result<Bytes, Gone> {
        let spilled = self.backlog.spilled.as_ref().ok_or(Gone)?;
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => none.insert(spilled.read().ok_or(Gone)?),
        };
        let read = reading.await;
        self.reading = None;
        let bytes = read.map_err(io::Error::other).flatten().map_err(|error| {
            tracing::warn!(%error, "what a client said is lost: it cannot be read from the disk");
            Gone
        })?;
        spilled.taken(bytes.len());
        Ok(self.took(bytes))
    }

    fn took(&self, bytes: Bytes) -> Bytes {
        self.backlog.remove(bytes.len());
        if let Some(taken) = &self.taken {
            taken(bytes.len());
        }
        bytes
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // Wakes the connection's reader if it waits for room.
        self.backlog.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backlog::MEMORY;
    use crate::limits::Limits;
    use crate::spill::SpillSpace;
    use crate::tests::pattern;
    use futures_util::FutureExt;

    /// A room that does not spill.
    fn unspilling() -> Arc<Room> {
        Room::of_forward(None, &Limits::default())
    }

    /// A room that spills, with these limits.
    fn spilling(limits: Limits) -> Arc<Room> {
        let space = SpillSpace::new(std::env::temp_dir(), limits.spilled);
        Room::of_forward(Some(&Arc::new(space)), &limits)
    }

    async fn all(input: &mut Input) -> Vec<u8> {
        let mut got = Vec::new();
        while let Some(piece) = input.next().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        got
    }

    #[tokio::test]
    async fn input_waits_for_its_reader_and_nothing_is_lost() {
        let room = unspilling();
        let memory = room.memory.available_permits();
        let (sender, mut input) = input(&room, None);
        let sent = pattern(MEMORY * 3);
        let bytes = Bytes::from(sent.clone());
        let writer = tokio::spawn(async move { sender.send(bytes).await });
        tokio::task::yield_now().await;
        assert!(!writer.is_finished());
        assert!(all(&mut input).await == sent);
        drop(input);
        assert_eq!(room.memory.available_permits(), memory);
    }

    // Without a runtime, which makes tasks pause that do much.
    #[test]
    fn many_small_pieces_take_room_as_large_ones_do() {
        let room = unspilling();
        let (sender, input) = input(&room, None);
        let mut pieces = 0;
        while sender
            .send(Bytes::from_static(b"x"))
            .now_or_never()
            .is_some()
        {
            pieces += 1;
        }
        assert_eq!(pieces, MEMORY / (1 + COST));
        drop(input);
    }

    #[tokio::test]
    async fn reader_that_goes_away_lets_its_sender_go_on() {
        let full = Limits {
            spilled: 0,
            ..Limits::default()
        };
        for room in [unspilling(), spilling(full)] {
            let (sender, input) = input(&room, None);
            let sending = sender.send(Bytes::from(vec![0; MEMORY * 2]));
            let (_, ()) = tokio::join!(sending, async {
                tokio::task::yield_now().await;
                drop(input);
            });
        }
    }

    #[tokio::test]
    async fn full_connection_stalls_and_a_dropped_stream_frees_it() {
        let room = unspilling();
        let mut full = Vec::new();
        for _ in 0..8 {
            let (sender, input) = input(&room, None);
            let _ = sender.send(Bytes::from(vec![0; MEMORY])).now_or_never();
            full.push(input);
        }
        let (sender, mut last) = input(&room, None);
        let mut waiting = std::pin::pin!(sender.send(Bytes::from(vec![7; PIECE])));
        assert!(waiting.as_mut().now_or_never().is_none());
        full.clear();
        waiting.await;
        assert_eq!(last.next().await.unwrap().unwrap().len(), PIECE);
    }

    #[tokio::test]
    async fn what_memory_has_no_room_for_waits_on_the_disk_in_its_place() {
        let limits = Limits::default();
        let room = spilling(limits);
        let mut streams = Vec::new();
        // More of them than the connection's memory has room for, none with a reader.
        for _ in 0..8 {
            let (sender, input) = input(&room, None);
            sender.send(pattern(MEMORY * 3).into()).await;
            streams.push((sender, input));
        }
        // A bit of each kind: what comes while the reader is at it goes behind.
        for (sender, mut input) in streams {
            let first = input.next().await.unwrap().unwrap();
            sender.send(pattern(PIECE + 1).into()).await;
            drop(sender);
            let mut sent = pattern(MEMORY * 3);
            sent.extend(pattern(PIECE + 1));
            assert!([&first[..], &all(&mut input).await].concat() == sent);
        }
    }

    #[tokio::test]
    async fn writer_and_reader_that_take_turns_at_being_slow_lose_nothing() {
        let limits = Limits {
            spilled_by_forward: MEMORY,
            ..Limits::default()
        };
        let room = spilling(limits);
        let (sender, mut input) = input(&room, None);
        let sent = pattern(16 * MEMORY);
        let writer = async {
            for (n, piece) in sent.chunks(30_000).enumerate() {
                sender.send(Bytes::copy_from_slice(piece)).await;
                if n % 64 == 63 {
                    sleep(room.patience * 3).await;
                }
            }
            drop(sender);
        };
        let reader = async {
            let mut got = Vec::new();
            while let Some(piece) = input.next().await.unwrap() {
                if got.len() % (4 * MEMORY) > 3 * MEMORY {
                    sleep(room.patience * 2).await;
                }
                got.extend_from_slice(&piece);
            }
            got
        };
        let ((), got) = tokio::join!(writer, reader);
        assert!(got == sent);
        assert_eq!(input.backlog.len(), 0);
    }

    #[tokio::test]
    async fn fullest_stream_breaks_where_there_is_no_room_for_too_long() {
        let limits = Limits {
            spilled: 4 * MEMORY,
            stalled: LOOK * 5,
            ..Limits::default()
        };
        let room = spilling(limits);
        let (fuller, full) = input(&room, None);
        fuller.send(vec![0; 4 * MEMORY].into()).await;
        let (other, mut moving) = input(&room, None);
        let waiting = other.send(vec![1; 2 * MEMORY].into());
        let breaks = async {
            let why = full.broken().await;
            assert!(
                matches!(why, Break::Stalled(bytes) if bytes > 3 * MEMORY),
                "{why:?}"
            );
            drop(full);
        };
        tokio::join!(waiting, breaks);
        assert!(moving.broken().now_or_never().is_none());
        drop(other);
        assert_eq!(all(&mut moving).await.len(), 2 * MEMORY);
    }

    #[tokio::test]
    async fn disk_that_is_not_there_leaves_what_memory_has() {
        let space = Arc::new(SpillSpace::new("/nowhere".into(), 1 << 30));
        let limits = Limits {
            stalled: LOOK * 2,
            ..Limits::default()
        };
        let room = Room::of_forward(Some(&space), &limits);
        let (sender, mut input) = input(&room, None);
        let broken = input.broken();
        let sent = pattern(MEMORY * 2);
        let read = async {
            sleep(LOOK * 5).await;
            all(&mut input).await
        };
        let (got, ()) = tokio::join!(read, async {
            sender.send(sent.clone().into()).await;
            drop(sender);
        });
        assert!(got == sent);
        // Its end would have helped nobody.
        assert!(broken.now_or_never().is_none());
    }

    #[tokio::test]
    async fn reset_comes_after_what_was_sent() {
        for (room, len) in [(unspilling(), 1), (spilling(Limits::default()), MEMORY * 2)] {
            let (sender, mut input) = input(&room, None);
            let sent = pattern(len);
            sender.send(sent.clone().into()).await;
            sender.backlog().break_off(Break::Reset);
            drop(sender);
            let mut got = Vec::new();
            while let Ok(piece) = input.next().await {
                got.extend_from_slice(&piece.unwrap());
            }
            assert!(got == sent);
        }
    }
}
