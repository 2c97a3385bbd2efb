//! The loop that most devices share: take chains from a queue, answer each.

use crate::chain::{self, Chain, RawChain};
use crate::device::{DeviceError, VirtQueue};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

/// Chains answered in one turn.
pub(crate) const MAX_CHAINS_PER_TURN: usize = 256;
/// Bytes moved in one turn, counted before the chain that goes past it.
pub(crate) const MAX_BYTES_PER_TURN: usize = 16 << 20;
/// Bytes moved before the guest hears of the chains done so far.
const BYTES_PER_SIGNAL: usize = 1 << 20;

/// What a device did with a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// Bytes that the device wrote into the chain (virtio 1.2, 2.7.8.2).
    pub(crate) written: u32,
    /// Bytes that it moved: how much of its turn this took.
    pub(crate) moved: usize,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing is left; the guest will ring when there is.
    Idle,
    /// The turn was used up. The guest may not ring for what is left.
    Spent,
}

/// Answers the chains of `queue` for one turn.
pub(crate) fn serve(
    index: u16,
    memory: &GuestMemoryMmap,
    queue: &mut dyn VirtQueue,
    mut answer: impl FnMut(Chain<'_>) -> Answer,
) -> Result<Turn, DeviceError> {
    serve_or_keep(index, memory, queue, |raw| {
        raw.resolve(memory).map(|chain| Some(answer(chain)))
    })
}

/// As [`serve`]; a chain that gets no answer is kept by `answer`, and answered
/// another time.
pub(crate) fn serve_or_keep(
    index: u16,
    memory: &GuestMemoryMmap,
    queue: &mut dyn VirtQueue,
    mut answer: impl FnMut(RawChain) -> Result<Option<Answer>, virtio_queue::Error>,
) -> Result<Turn, DeviceError> {
    let broken = |source| DeviceError::Queue {
        queue: index,
        source,
    };
    if !queue.queue().ready() {
        return Ok(Turn::Idle);
    }
    let mut chains = 0;
    let mut bytes = 0;
    let mut unheard = 0;
    let mut silent = false;
    let turn = 'turn: loop {
        queue.queue().disable_notification(memory).map_err(broken)?;
        while let Some(chain) = chain::pop_raw(queue.queue(), memory).map_err(broken)? {
            let head = chain.head;
            chains += 1;
            let Some(Answer { written, moved }) = answer(chain).map_err(broken)? else {
                if chains >= MAX_CHAINS_PER_TURN {
                    break 'turn Turn::Spent;
                }
                continue;
            };
            queue
                .queue()
                .add_used(memory, head, written)
                .map_err(broken)?;
            bytes += moved;
            unheard += moved;
            silent = true;
            if unheard >= BYTES_PER_SIGNAL {
                queue.signal()?;
                unheard = 0;
                silent = false;
            }
            if chains >= MAX_CHAINS_PER_TURN || bytes >= MAX_BYTES_PER_TURN {
                break 'turn Turn::Spent;
            }
        }
        if !queue.queue().enable_notification(memory).map_err(broken)? {
            break Turn::Idle;
        }
    };
    if silent {
        queue.signal()?;
    }
    Ok(turn)
}
