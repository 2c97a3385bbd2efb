//! The console device (virtio 1.2, 5.3), output only and without multiport:
//! what the guest's kernel prints goes to a sink.
//!
//! The sink may be slow; then the guest's printing is slow. How much of a
//! flooding guest's output is kept is the sink's affair.

use crate::chain::Chain;
use crate::device::{DeviceError, Queues, VirtioDevice};
use crate::serve::{Answer, Turn, serve};
use crate::wakeup::Wakeup;
use std::fmt;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;

/// Index of the queue that the guest transmits on; 0 receives and is never
/// answered, as nobody types.
const TRANSMIT: u16 = 1;
/// Bytes taken from one chain; Linux writes at most a page. More is dropped.
const MAX_BYTES_PER_CHAIN: usize = 1 << 20;
/// Bytes copied out of guest memory at once.
const PIECE: usize = 4096;

/// The console device.
pub struct Console {
    sink: Arc<Mutex<dyn Write + Send>>,
    wakeup: Wakeup,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// A console whose output goes to `sink`. Errors of the sink lose output
    /// and do not stop the guest.
    pub fn new(sink: Arc<Mutex<dyn Write + Send>>) -> Console {
        Console {
            sink,
            wakeup: Wakeup::new(),
        }
    }

    fn turn(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        let Some(queue) = queues.get_mut(usize::from(TRANSMIT)) else {
            return Ok(());
        };
        // A writer that panicked elsewhere left bytes behind, nothing worse.
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        while serve(TRANSMIT, memory, *queue, |chain| print(chain, &mut *sink))? == Turn::Spent {
            if self.wakeup.raise() {
                break;
            }
        }
        // Output that the sink cannot take is lost; the guest goes on.
        let _ = sink.flush();
        Ok(())
    }
}

/// Writes what a chain holds to the sink.
fn print(chain: Chain<'_>, sink: &mut dyn Write) -> Answer {
    let mut rest = chain.readable;
    drop(rest.split_off(MAX_BYTES_PER_CHAIN));
    let moved = rest.len();
    let mut piece = [0; PIECE];
    loop {
        let len = rest.copy_to(&mut piece);
        if len == 0 || sink.write_all(&piece[..len]).is_err() {
            break;
        }
        rest = rest.split_off(len);
    }
    Answer { written: 0, moved }
}

impl VirtioDevice for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        // No field is valid without VIRTIO_CONSOLE_F_SIZE or F_MULTIPORT.
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
        self.wakeup.clear();
    }

    fn queue_event(
        &mut self,
        index: u16,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        if index == TRANSMIT {
            self.turn(memory, queues)?;
        }
        Ok(())
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wakeup.fd()
    }

    fn host_event(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.wakeup.clear();
        self.turn(memory, queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Buffer, Harness};
    use std::io;

    /// A sink that keeps what it gets, or fails.
    #[derive(Default)]
    struct Kept {
        bytes: Vec<u8>,
        broken: bool,
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.broken {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn harness() -> (Harness<Console>, Arc<Mutex<Kept>>) {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let sink: Arc<Mutex<dyn Write + Send>> = kept.clone();
        (Harness::new(Console::new(sink), 64, 8), kept)
    }

    fn kept(sink: &Mutex<Kept>) -> Vec<u8> {
        sink.lock().expect("no writer panicked").bytes.clone()
    }

    #[test]
    fn output_keeps_its_order() {
        let (mut harness, sink) = harness();
        for line in ["one\n", "two\n", "three\n"] {
            let (start, end) = line.split_at(1);
            let (start, end) = (
                harness.store(start.as_bytes()),
                harness.store(end.as_bytes()),
            );
            let rest = u32::try_from(line.len() - 1).expect("small");
            harness.rings[1]
                .push(&[Buffer::readable(start, 1), Buffer::readable(end, rest)])
                .expect("room");
        }
        harness.run(1).expect("the device works");
        assert_eq!(kept(&sink), b"one\ntwo\nthree\n");
        assert_eq!(harness.rings[1].pop_used().map(|(_, len)| len), Some(0));
    }

    #[test]
    fn a_huge_chain_is_cut() {
        let (mut harness, sink) = harness();
        let addr = harness.allocate(3 << 20);
        harness.rings[1]
            .push(&[Buffer::readable(addr, 3 << 20)])
            .expect("room");
        harness.run(1).expect("the device works");
        assert_eq!(kept(&sink).len(), MAX_BYTES_PER_CHAIN);
    }

    #[test]
    fn a_sink_that_fails_stops_nothing() {
        let (mut harness, sink) = harness();
        sink.lock().expect("no writer panicked").broken = true;
        let addr = harness.store(b"lost");
        harness.rings[1]
            .push(&[Buffer::readable(addr, 4)])
            .expect("room");
        harness.run(1).expect("the device works");
        assert!(harness.rings[1].pop_used().is_some());
    }

    #[test]
    fn input_buffers_are_kept_for_ever() {
        let (mut harness, _) = harness();
        let addr = harness.allocate(64);
        harness.rings[0]
            .push(&[Buffer::writable(addr, 64)])
            .expect("room");
        harness.run(0).expect("the device works");
        assert!(harness.rings[0].pop_used().is_none());
    }

    #[test]
    fn one_interrupt_serves_many_lines() {
        let (mut harness, _) = harness();
        let addr = harness.store(b"x");
        for _ in 0..50 {
            harness.rings[1]
                .push(&[Buffer::readable(addr, 1)])
                .expect("room");
        }
        harness.run(1).expect("the device works");
        assert_eq!(harness.queues[1].signals, 1);
    }
}
