//! The virtio-fs device (virtio 1.2, 5.11).

use super::abi;
use super::request::{Header, MAX_REQUEST, Operation, WRITE_HEADER};
use super::server::{Data, Reply, Server};
use super::share::FsHandle;
use super::table::{FsLimits, Table};
use crate::chain::{Buffers, Chain};
use crate::device::{DeviceError, Queues, VirtioDevice};
use crate::serve::{Answer, Turn, serve};
use crate::wakeup::Wakeup;
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;

/// Index of the queue for FORGET, and of the one for requests.
const HIPRIO: u16 = 0;
const REQUESTS: u16 = 1;
/// Entries in each: a request of the largest size takes a page an entry.
const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// Bytes of the tag in the configuration space.
const TAG: usize = 36;
/// What a request costs of a turn at least, in bytes moved.
const REQUEST_COST: usize = 4096;

/// A virtio-fs device whose root lists the shares that a [`FsHandle`] attaches.
#[derive(Debug)]
pub struct Fs {
    tag: [u8; TAG],
    server: Server,
    /// Held while a request is done: a detached share is out of use when it is
    /// free.
    busy: Arc<Mutex<()>>,
    wakeup: Wakeup,
}

impl Fs {
    /// A device without shares. `tag` is its name in the guest (its first 36
    /// bytes).
    ///
    /// # Errors
    /// If this process's descriptors cannot be reached (/proc/self/fd).
    pub fn new(tag: &str, limits: FsLimits) -> io::Result<(Fs, FsHandle)> {
        let table = Arc::new(Mutex::new(Table::new(limits)));
        let busy = Arc::new(Mutex::new(()));
        let handle = FsHandle::new(Arc::clone(&table), Arc::clone(&busy));
        let mut bytes = [0; TAG];
        for (to, from) in bytes.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        let device = Fs {
            tag: bytes,
            server: Server::new(table)?,
            busy,
            wakeup: Wakeup::new(),
        };
        Ok((device, handle))
    }

    #[cfg(test)]
    pub(super) fn table_counts(&self) -> (usize, usize) {
        self.server.table().counts()
    }

    fn turn(
        &mut self,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        loop {
            let mut spent = false;
            for index in [HIPRIO, REQUESTS] {
                if let Some(queue) = queues.get_mut(usize::from(index)) {
                    let turn = serve(index, memory, *queue, |chain| self.answer(chain))?;
                    spent |= turn == Turn::Spent;
                }
            }
            if !spent || self.wakeup.raise() {
                return Ok(());
            }
        }
    }

    /// Does one request and writes its answer.
    fn answer(&self, chain: Chain<'_>) -> Answer {
        let Chain {
            mut readable,
            mut writable,
            ..
        } = chain;
        let nothing = Answer {
            written: 0,
            moved: REQUEST_COST,
        };
        let total = readable.len();
        let mut bytes = vec![0; total.min(WRITE_HEADER)];
        readable.copy_to(&mut bytes);
        let Some((header, _)) = Header::parse(&bytes) else {
            return nothing;
        };
        let mut sent = Buffers::default();
        let mut too_long = false;
        if header.opcode == abi::opcode::WRITE {
            sent = readable.split_off(WRITE_HEADER);
        } else if total > MAX_REQUEST {
            too_long = true;
        } else {
            bytes.resize(total, 0);
            readable.copy_to(&mut bytes);
        }
        let room = writable.split_off(abi::OUT_HEADER);
        let answerable = writable.len() == abi::OUT_HEADER;
        let silent = [abi::opcode::FORGET, abi::opcode::BATCH_FORGET];
        if !answerable && !silent.contains(&header.opcode) {
            return nothing;
        }
        let data = Data { sent, room };
        let result = if too_long {
            Err(Errno::TOOBIG)
        } else {
            self.perform(&bytes, &data)
        };
        let moved = REQUEST_COST + total + data.room.len();
        Answer {
            written: reply(
                header.unique,
                result,
                answerable.then_some(&writable),
                &data.room,
            ),
            moved,
        }
    }

    /// `bytes` is a request, or of a WRITE the part before its data.
    fn perform(&self, bytes: &[u8], data: &Data<'_>) -> Result<Reply, Errno> {
        // Read once more from our copy: the guest may have changed its own.
        let (header, fields) = Header::parse(bytes).ok_or(Errno::INVAL)?;
        let operation = Operation::parse(&header, fields)?;
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.server.perform(&header, &operation, data)
    }
}

/// Writes an answer; the bytes written.
fn reply(
    unique: u64,
    result: Result<Reply, Errno>,
    header: Option<&Buffers<'_>>,
    room: &Buffers<'_>,
) -> u32 {
    let Some(header) = header else {
        return 0;
    };
    let (error, len) = match result {
        Ok(Reply::None) => return 0,
        Ok(Reply::InPlace(len)) => (0, len.min(room.len())),
        Ok(Reply::Body(body)) if body.len() <= room.len() => (0, room.copy_from(&body)),
        // The driver left too little room for the answer.
        Ok(Reply::Body(_)) => (-Errno::IO.raw_os_error(), 0),
        Err(errno) => (-errno.raw_os_error(), 0),
    };
    // Guest buffers are below 4 GiB in all.
    let total = u32::try_from(abi::OUT_HEADER + len).unwrap_or(u32::MAX);
    let bytes = abi::Body::default()
        .u32(total)
        .u32(error.cast_unsigned())
        .u64(unique);
    header.copy_from(&bytes.0);
    total
}

impl VirtioDevice for Fs {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_fs_config: the tag, then the number of request queues.
        let mut config = [0; TAG + 4];
        config[..TAG].copy_from_slice(&self.tag);
        config[TAG..].copy_from_slice(&1u32.to_le_bytes());
        let from = usize::try_from(offset).map_or(config.len(), |at| at.min(config.len()));
        let len = data.len().min(config.len() - from);
        data.fill(0);
        data[..len].copy_from_slice(&config[from..from + len]);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
        self.wakeup.clear();
        self.server.table().forget_all();
    }

    fn queue_event(
        &mut self,
        _index: u16,
        memory: &GuestMemoryMmap,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        self.turn(memory, queues)
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
