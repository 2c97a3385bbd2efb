//! What waits for the reader of one stream, as both ends of the stream know it.

use crate::spill::{SpillQueue, SpillShare};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, Semaphore, watch};

/// Most bytes that wait in memory for one stream.
pub(crate) const MEMORY: usize = 256 << 10;

/// Why a stream ends otherwise than by its reader's coming to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// The peer has broken it off. What it said before may still be taken.
    Reset,
    /// Nothing has been taken of that many bytes, nor of those of the connection's
    /// other streams, for as long as they may hold each other up.
    Stalled(usize),
}

/// What waits.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// Room in memory; closed with the reader.
    pub(crate) memory: Arc<Semaphore>,
    /// What memory has no room for, if that may be.
    pub(crate) spilled: Option<SpillQueue>,
    /// Something was spilled.
    pub(crate) more: Notify,
    bytes: AtomicUsize,
    broken: watch::Sender<Option<Break>>,
}

impl Backlog {
    pub(crate) fn new(spill: Option<SpillShare>) -> Self {
        Self {
            memory: Arc::new(Semaphore::new(MEMORY)),
            spilled: spill.map(SpillQueue::new),
            more: Notify::new(),
            bytes: AtomicUsize::new(0),
            broken: watch::Sender::new(None),
        }
    }

    /// Bytes that wait; none without a reader.
    pub(crate) fn len(&self) -> usize {
        if self.memory.is_closed() {
            return 0;
        }
        self.bytes.load(Ordering::Relaxed)
    }

    /// That many more wait.
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// That many wait no more.
    pub(crate) fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Tells the reader that its stream is broken.
    pub(crate) fn break_off(&self, why: Break) {
        self.broken.send_replace(Some(why));
    }

    /// Whether it is.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.borrow().is_some()
    }

    /// Returns when it is.
    pub(crate) fn broken(&self) -> impl Future<Output = Break> + use<> {
        let mut broken = self.broken.subscribe();
        async move {
            match broken.wait_for(Option::is_some).await.map(|found| *found) {
                Ok(Some(found)) => found,
                // It is no more.
                Ok(None) | Err(_) => pending().await,
            }
        }
    }

    /// The reader is gone.
    pub(crate) fn close(&self) {
        self.memory.close();
        if let Some(spilled) = &self.spilled {
            spilled.close();
        }
    }
}
