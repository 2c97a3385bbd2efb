//! Frames from the guest to the TAP.

use super::counters::Direction;
use super::header::{self, HEADER_LEN, Head, MAX_PACKET};
use super::tap::Tap;
use crate::chain::{self, Buffers, Chain};
use crate::device::{DeviceError, VirtQueue};
use crate::guest_io::{self, MAX_IOVECS};
use crate::serve::{MAX_BYTES_PER_TURN, MAX_CHAINS_PER_TURN};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

/// What a frame must be like to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    /// The driver's.
    pub(super) features: u64,
    /// The only address that frames may come from.
    pub(super) source: Option<[u8; 6]>,
}

/// One transmit queue's state between turns.
#[derive(Debug, Default)]
pub(super) struct Tx {
    /// The TAP is full: the frames wait in the guest's ring.
    pub(super) blocked: bool,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxTurn {
    /// Nothing is left; the guest will ring when there is.
    Idle,
    /// The TAP takes no more.
    Blocked,
    /// The turn was used up.
    Spent,
}

/// What became of a frame.
enum Sent {
    Whole,
    Dropped,
    Blocked,
}

impl Tx {
    /// Moves frames for one turn.
    pub(super) fn turn(
        &mut self,
        index: u16,
        tap: &Tap,
        memory: &GuestMemoryMmap,
        queue: &mut dyn VirtQueue,
        filter: Filter,
        counters: &Direction,
    ) -> Result<TxTurn, DeviceError> {
        self.blocked = false;
        if !queue.queue().ready() {
            return Ok(TxTurn::Idle);
        }
        let broken = |source| DeviceError::Queue {
            queue: index,
            source,
        };
        let (mut chains, mut bytes) = (0, 0);
        let turn = 'turn: loop {
            queue.queue().disable_notification(memory).map_err(broken)?;
            while let Some(chain) = chain::pop(queue.queue(), memory).map_err(broken)? {
                let head = chain.head;
                let len = chain.readable.len();
                match send(chain, tap, filter)? {
                    Sent::Whole => {
                        counters.moved(len - HEADER_LEN);
                        bytes += len;
                    }
                    Sent::Dropped => counters.lost(),
                    Sent::Blocked => {
                        let queue = queue.queue();
                        queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                        break 'turn TxTurn::Blocked;
                    }
                }
                queue.queue().add_used(memory, head, 0).map_err(broken)?;
                chains += 1;
                if chains >= MAX_CHAINS_PER_TURN || bytes >= MAX_BYTES_PER_TURN {
                    break 'turn TxTurn::Spent;
                }
            }
            if !queue.queue().enable_notification(memory).map_err(broken)? {
                break TxTurn::Idle;
            }
        };
        if chains > 0 {
            queue.signal()?;
        }
        self.blocked = turn == TxTurn::Blocked;
        Ok(turn)
    }
}

fn send(chain: Chain<'_>, tap: &Tap, filter: Filter) -> Result<Sent, DeviceError> {
    let mut rest = chain.readable;
    let len = rest.len();
    let mut head: Head = [0; _];
    if len < head.len() || len > MAX_PACKET || rest.copy_to(&mut head) < head.len() {
        return Ok(Sent::Dropped);
    }
    let spoofed = filter
        .source
        .is_some_and(|address| address != header::source(&head));
    if spoofed || !header::accept(&mut head, filter.features) {
        return Ok(Sent::Dropped);
    }
    let rest = rest.split_off(head.len());
    match write(tap, &head, &rest) {
        Ok(_) => Ok(Sent::Whole),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => Ok(Sent::Blocked),
            // The TAP is gone.
            Some(Errno::BADFD | Errno::BADF | Errno::NODEV | Errno::PIPE) => Err(error.into()),
            // The frame is not one, there is no memory for it, the interface is
            // down: an Ethernet loses such frames.
            _ => Ok(Sent::Dropped),
        },
    }
}

fn write(tap: &Tap, head: &Head, rest: &Buffers<'_>) -> io::Result<usize> {
    if rest.slices().len() < MAX_IOVECS {
        return guest_io::write_packet(tap.as_fd(), head, rest);
    }
    // In more pieces than one call takes.
    let mut packet = vec![0; head.len() + rest.len()];
    packet[..head.len()].copy_from_slice(head);
    rest.copy_to(&mut packet[head.len()..]);
    Ok(rustix::io::retry_on_intr(|| {
        rustix::io::write(tap, &packet)
    })?)
}
