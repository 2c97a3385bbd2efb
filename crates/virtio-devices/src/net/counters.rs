//! What went through a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Figures of one device since it was made, seen from the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Frames that the guest got.
    pub rx_frames: u64,
    /// Their bytes, without virtio headers.
    pub rx_bytes: u64,
    /// Frames for the guest that no buffer of its could hold.
    pub rx_dropped: u64,
    /// Frames that the guest sent.
    pub tx_frames: u64,
    /// Their bytes, without virtio headers.
    pub tx_bytes: u64,
    /// Frames of the guest that were malformed, spoofed or not taken by the host.
    pub tx_dropped: u64,
}

/// A device's figures, in reach while it runs.
#[derive(Clone, Debug)]
pub struct NetHandle {
    pub(super) shared: Arc<Shared>,
}

impl NetHandle {
    /// The figures now. Each is exact; they are not of one instant.
    pub fn counters(&self) -> NetCounters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetCounters {
            rx_frames: load(&self.shared.rx.frames),
            rx_bytes: load(&self.shared.rx.bytes),
            rx_dropped: load(&self.shared.rx.dropped),
            tx_frames: load(&self.shared.tx.frames),
            tx_bytes: load(&self.shared.tx.bytes),
            tx_dropped: load(&self.shared.tx.dropped),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) rx: Direction,
    pub(super) tx: Direction,
}

#[derive(Debug, Default)]
pub(super) struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// A frame went; `bytes` without its virtio header.
    pub(super) fn moved(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame was lost.
    pub(super) fn lost(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
