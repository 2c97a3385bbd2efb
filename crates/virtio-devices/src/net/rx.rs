//! Frames from the TAP to the guest.

use super::counters::Direction;
use super::header::{HEADER_LEN, MAX_PACKET, NUM_BUFFERS};
use super::tap::Tap;
use super::used::{self, Done};
use crate::chain::{self, Buffers, Slice};
use crate::device::{DeviceError, VirtQueue};
use crate::guest_io::{self, MAX_IOVECS};
use crate::serve::{MAX_BYTES_PER_TURN, MAX_CHAINS_PER_TURN};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestMemoryMmap;

/// Slices after which no more buffers of the guest are gathered for one frame.
const MAX_POOLED_SLICES: usize = 512;
/// Bytes moved before the guest hears of them.
const BYTES_PER_SIGNAL: usize = 1 << 20;

/// What the driver's features mean for received frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// A frame may take several buffers.
    pub(super) mergeable: bool,
    /// Header and frame at their largest.
    pub(super) max_packet: usize,
}

/// One receive queue's state between turns.
#[derive(Debug)]
pub(super) struct Rx {
    /// A packet that was read where the guest had too little room for every
    /// packet: the first `held` bytes.
    packet: Box<[u8]>,
    held: usize,
    /// The guest rings when it has made room; until then the TAP is left alone.
    pub(super) starved: bool,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RxTurn {
    /// The TAP is empty.
    Idle,
    /// The guest is out of buffers.
    Starved,
    /// The turn was used up.
    Spent,
}

/// A packet that was looked for in the TAP.
enum Read {
    /// In the pooled buffers.
    InPlace(usize),
    /// In `Rx::packet`.
    Held,
    /// There is none.
    Empty,
}

impl Rx {
    pub(super) fn new() -> Rx {
        Rx {
            packet: Box::default(),
            held: 0,
            starved: false,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Rx::new();
    }

    /// Moves frames for one turn.
    pub(super) fn turn(
        &mut self,
        index: u16,
        tap: &Tap,
        memory: &GuestMemoryMmap,
        queue: &mut dyn VirtQueue,
        shape: Shape,
        counters: &Direction,
    ) -> Result<RxTurn, DeviceError> {
        if !queue.queue().ready() {
            self.starved = true;
            return Ok(RxTurn::Starved);
        }
        let broken = |source| DeviceError::Queue {
            queue: index,
            source,
        };
        queue.queue().disable_notification(memory).map_err(broken)?;
        let mut unheard = queue.queue().next_used();
        let mut pool = Pool::default();
        let (mut chains, mut bytes, mut silent) = (0, 0, 0);
        let turn = loop {
            if chains >= MAX_CHAINS_PER_TURN || bytes >= MAX_BYTES_PER_TURN {
                break RxTurn::Spent;
            }
            chains += pool.fill(queue.queue(), memory, shape).map_err(broken)?;
            let len = match self.read(tap, &pool, shape)? {
                Read::Empty => break RxTurn::Idle,
                Read::InPlace(len) => len,
                Read::Held if self.held > 0 && pool.room(shape) >= self.held => {
                    pool.copy_from(&self.packet[..self.held]);
                    std::mem::take(&mut self.held)
                }
                Read::Held if self.held > 0 && pool.is_full(queue.queue(), shape) => {
                    counters.lost();
                    self.held = 0;
                    chains += 1;
                    continue;
                }
                Read::Held => {
                    // The event index is that of the next new buffer, so this
                    // comes before the pooled ones are given back.
                    if queue.queue().enable_notification(memory).map_err(broken)? {
                        queue.queue().disable_notification(memory).map_err(broken)?;
                        continue;
                    }
                    break RxTurn::Starved;
                }
            };
            if len <= HEADER_LEN || len > shape.max_packet {
                counters.lost();
                chains += 1;
                continue;
            }
            chains += pool.finish(len, queue.queue(), memory).map_err(broken)?;
            counters.moved(len - HEADER_LEN);
            bytes += len;
            silent += len;
            if silent >= BYTES_PER_SIGNAL {
                used::signal(index, queue, memory, unheard)?;
                unheard = queue.queue().next_used();
                silent = 0;
            }
        };
        pool.give_back(queue.queue());
        used::signal(index, queue, memory, unheard)?;
        self.starved = turn == RxTurn::Starved;
        Ok(turn)
    }

    /// Reads a packet, into the pooled buffers if every packet fits there.
    /// Nothing is read while one is held, or for a guest without any buffer.
    fn read(&mut self, tap: &Tap, pool: &Pool<'_>, shape: Shape) -> Result<Read, DeviceError> {
        if self.held > 0 || pool.chains.is_empty() {
            return Ok(Read::Held);
        }
        // One byte more than the largest packet, so that a larger one shows.
        let direct = pool.room(shape) > shape.max_packet && pool.slices <= MAX_IOVECS;
        let got = if direct {
            guest_io::read_packet(tap.as_fd(), pool.slices(shape))
        } else {
            if self.packet.is_empty() {
                self.packet = vec![0; MAX_PACKET + 1].into();
            }
            rustix::io::retry_on_intr(|| rustix::io::read(tap, &mut self.packet[..]))
                .map_err(io::Error::from)
        };
        match got {
            Ok(len) if direct => Ok(Read::InPlace(len)),
            // A frame of nothing: the next look finds none held.
            Ok(len) if len <= HEADER_LEN || len > shape.max_packet => Ok(Read::InPlace(0)),
            Ok(len) => {
                self.held = len;
                Ok(Read::Held)
            }
            Err(error) if is(&error, Errno::AGAIN) => Ok(Read::Empty),
            // The TAP is gone, or the like: without it there is no link.
            Err(error) => Err(error.into()),
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Buffers that the guest offers, taken from its ring but not used yet.
#[derive(Default)]
struct Pool<'a> {
    chains: VecDeque<(u16, Buffers<'a>)>,
    bytes: usize,
    slices: usize,
    /// The ring's next buffer is too small for a header, and can go back only
    /// when it is the first.
    closed: bool,
}

impl<'a> Pool<'a> {
    /// Takes buffers until every packet fits, if there are as many; how many
    /// were too small for a header and went straight back.
    fn fill(
        &mut self,
        queue: &mut Queue,
        memory: &'a GuestMemoryMmap,
        shape: Shape,
    ) -> Result<usize, Error> {
        let mut refused = 0;
        while self.room(shape) <= shape.max_packet
            && !self.is_full(queue, shape)
            && refused < MAX_CHAINS_PER_TURN
        {
            let Some(chain) = chain::pop(queue, memory)? else {
                break;
            };
            let len = chain.writable.len();
            if len < HEADER_LEN {
                // "At least the size of the header" (5.1.6.3.1).
                if self.chains.is_empty() {
                    used::publish(queue, memory, &[(chain.head, 0)])?;
                    refused += 1;
                    continue;
                }
                queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                self.closed = true;
                break;
            }
            self.bytes += len;
            self.slices += chain.writable.slices().len();
            self.chains.push_back((chain.head, chain.writable));
        }
        Ok(refused)
    }

    /// No more buffers will ever be gathered for one packet.
    fn is_full(&self, queue: &Queue, shape: Shape) -> bool {
        let enough = if shape.mergeable {
            usize::from(queue.size())
        } else {
            1
        };
        self.closed || self.chains.len() >= enough || self.slices >= MAX_POOLED_SLICES
    }

    /// Bytes that one packet may take.
    fn room(&self, shape: Shape) -> usize {
        if shape.mergeable {
            self.bytes
        } else {
            self.chains.front().map_or(0, |(_, buffers)| buffers.len())
        }
    }

    fn slices(&self, shape: Shape) -> impl Iterator<Item = &Slice<'a>> + Clone {
        let count = if shape.mergeable { usize::MAX } else { 1 };
        self.chains
            .iter()
            .take(count)
            .flat_map(|(_, buffers)| buffers.slices())
    }

    fn copy_from(&self, mut packet: &[u8]) {
        for (_, buffers) in &self.chains {
            let done = buffers.copy_from(packet);
            packet = &packet[done..];
            if packet.is_empty() {
                break;
            }
        }
    }

    /// Gives the guest the packet of `len` bytes that lies in the first buffers;
    /// how many these are.
    fn finish(
        &mut self,
        len: usize,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<usize, Error> {
        let mut done: Vec<Done> = Vec::new();
        let mut left = len;
        let mut first = None;
        while left > 0 {
            let Some((head, buffers)) = self.chains.pop_front() else {
                break;
            };
            let part = buffers.len().min(left);
            self.bytes -= buffers.len();
            self.slices -= buffers.slices().len();
            left -= part;
            // At most MAX_PACKET.
            done.push((head, u32::try_from(part).unwrap_or(u32::MAX)));
            first.get_or_insert(buffers);
        }
        let count = u16::try_from(done.len()).unwrap_or(u16::MAX);
        if let Some(mut buffers) = first {
            let place = buffers.split_off(NUM_BUFFERS);
            place.copy_from(&count.to_le_bytes());
        }
        self.closed &= !self.chains.is_empty();
        used::publish(queue, memory, &done)?;
        Ok(done.len())
    }

    /// Puts what was not used back into the ring.
    fn give_back(&self, queue: &mut Queue) {
        // At most the queue's size.
        let count = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
    }
}
