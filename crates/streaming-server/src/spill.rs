//! Input that waits on a disk: where memory has no room for what a stream's reader
//! does not take, and the streams behind it are to go on.
//!
//! The files have no name: the kernel removes them with the process, however it ends.

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstatvfs, open};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

/// Most bytes taken at once.
const TAKE: u64 = 64 << 10;
/// What was taken is given back to the file system in whole blocks of this size,
/// which no file system's own exceeds.
const BLOCK: u64 = 64 << 10;

/// Where the input of all connections of a server may wait.
#[derive(Debug)]
pub(crate) struct SpillSpace {
    directory: PathBuf,
    room: Arc<Semaphore>,
    /// Bytes that are left free on the file system.
    reserve: u64,
}

impl SpillSpace {
    /// In files of a directory, for that many bytes; as many stay free beside them.
    pub(crate) fn new(directory: PathBuf, bytes: usize) -> Self {
        Self {
            directory,
            room: Arc::new(Semaphore::new(bytes)),
            reserve: u64::try_from(bytes).unwrap_or(u64::MAX),
        }
    }
}

/// The part of it that one connection may take.
#[derive(Debug, Clone)]
pub(crate) struct SpillShare {
    space: Arc<SpillSpace>,
    room: Arc<Semaphore>,
}

impl SpillShare {
    pub(crate) fn new(space: Arc<SpillSpace>, bytes: usize) -> Self {
        Self {
            space,
            room: Arc::new(Semaphore::new(bytes)),
        }
    }
}

/// Nothing more can be spilled now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpillError {
    #[error("as much waits as may")]
    Full,
    #[error("the file system in {1} has no space to spare")]
    NoSpace(#[source] io::Error, PathBuf),
    #[error("a file in {1} cannot be written")]
    Io(#[source] io::Error, PathBuf),
}

/// What one stream has spilled: bytes, first in, first out. It has one who puts and
/// one who takes, side by side.
#[derive(Debug)]
pub(crate) struct SpillQueue {
    share: SpillShare,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Made when it is needed.
    file: Option<Arc<File>>,
    /// Where the bytes begin and end in the file.
    head: u64,
    tail: u64,
    /// What they take, of the connection's share and of the server's space.
    room: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    closed: bool,
}

impl SpillQueue {
    pub(crate) fn new(share: SpillShare) -> Self {
        Self {
            share,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.head == state.tail
    }

    /// Puts bytes at the end, all or none.
    pub(crate) async fn put(&self, bytes: &Bytes) -> Result<(), SpillError> {
        let cost = u32::try_from(bytes.len()).map_err(|_| SpillError::Full)?;
        let room = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_many_owned(cost);
        let SpillShare { space, room: own } = &self.share;
        let (Ok(own), Ok(shared)) = (room(own), room(&space.room)) else {
            return Err(SpillError::Full);
        };
        let (file, tail) = {
            let state = self.lock();
            (state.file.clone(), state.tail)
        };
        let (space, bytes) = (Arc::clone(space), bytes.clone());
        let written = spawn_blocking(move || write(&space, file, &bytes, tail)).await;
        let file = written.map_err(|error| {
            SpillError::Io(io::Error::other(error), self.share.space.directory.clone())
        })??;
        let mut state = self.lock();
        if state.closed {
            return Ok(());
        }
        state.file = Some(file);
        state.tail += u64::from(cost);
        match &mut state.room {
            Some(room) => {
                room.0.merge(own);
                room.1.merge(shared);
            }
            none => *none = Some((own, shared)),
        }
        Ok(())
    }

    /// Begins to read the first bytes; `None`: there are none. They are there until
    /// [`Self::taken`] is told of them.
    pub(crate) fn read(&self) -> Option<JoinHandle<io::Result<Bytes>>> {
        let (file, head, len) = {
            let state = self.lock();
            let len = (state.tail - state.head).min(TAKE);
            (state.file.clone()?, state.head, len)
        };
        (len > 0).then(|| spawn_blocking(move || read(&file, head, len)))
    }

    /// The first bytes were taken.
    pub(crate) fn taken(&self, bytes: usize) {
        let mut state = self.lock();
        state.head += u64::try_from(bytes).unwrap_or(u64::MAX);
        if let Some((own, shared)) = &mut state.room {
            drop((own.split(bytes), shared.split(bytes)));
        }
    }

    /// Drops all, and what comes later, as nobody will take it.
    pub(crate) fn close(&self) {
        *self.lock() = State {
            closed: true,
            ..State::default()
        };
    }
}

fn write(
    space: &SpillSpace,
    file: Option<Arc<File>>,
    bytes: &[u8],
    at: u64,
) -> Result<Arc<File>, SpillError> {
    let directory = || space.directory.clone();
    let wrong = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SpillError::NoSpace(error, directory())
        }
        _ => SpillError::Io(error, directory()),
    };
    let file = match file {
        Some(file) => file,
        None => Arc::new(create(&space.directory).map_err(wrong)?),
    };
    let file_system = fstatvfs(&file).map_err(|error| wrong(error.into()))?;
    if file_system.f_bavail.saturating_mul(file_system.f_frsize) < space.reserve {
        return Err(wrong(io::ErrorKind::StorageFull.into()));
    }
    file.write_all_at(bytes, at).map_err(wrong)?;
    Ok(file)
}

/// A file without a name, on a file system that takes parts of it back.
fn create(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(open(directory, flags, Mode::RUSR | Mode::WUSR)?);
    free(&file, 0, BLOCK)?;
    Ok(file)
}

fn read(file: &File, head: u64, len: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, head)?;
    // What lies before it in its block was taken, too.
    let from = head - head % BLOCK;
    free(file, from, head + len - from)?;
    Ok(bytes.into())
}

/// Gives a range of a file back to the file system.
fn free(file: &File, from: u64, len: u64) -> io::Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, how, from, len)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn queue(share: usize, space: usize) -> SpillQueue {
        let space = SpillSpace {
            reserve: 0,
            ..SpillSpace::new(std::env::temp_dir(), space)
        };
        SpillQueue::new(SpillShare::new(Arc::new(space), share))
    }

    async fn take(queue: &SpillQueue) -> Bytes {
        let bytes = queue.read().unwrap().await.unwrap().unwrap();
        queue.taken(bytes.len());
        bytes
    }

    #[tokio::test]
    async fn bytes_come_as_they_went_and_their_disk_is_given_back() {
        let queue = queue(4 << 20, 4 << 20);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        // Of a size that fits no block, always more than is taken until now.
        for n in 0_u8..=255 {
            let piece = Bytes::from(vec![n; 33_333]);
            queue.put(&piece).await.unwrap();
            sent.extend(piece);
            if n % 4 == 3 {
                got.extend(take(&queue).await);
                got.extend(take(&queue).await);
            }
        }
        while !queue.is_empty() {
            got.extend(take(&queue).await);
        }
        assert!(got == sent);
        let file = queue.lock().file.clone().unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 33_333 * 256);
        assert!(metadata.blocks() * 512 <= BLOCK, "{metadata:?}");
        assert!(queue.read().is_none());
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_the_share_and_by_the_space() {
        for (share, space) in [(100, 1000), (1000, 100)] {
            let queue = queue(share, space);
            queue.put(&Bytes::from_static(&[0; 60])).await.unwrap();
            let more = Bytes::from_static(&[1; 60]);
            let refused = queue.put(&more).await;
            assert!(matches!(refused, Err(SpillError::Full)), "{refused:?}");
            assert_eq!(take(&queue).await.len(), 60);
            queue.put(&more).await.unwrap();
            queue.close();
            assert_eq!(queue.share.room.available_permits(), share);
            assert_eq!(queue.share.space.room.available_permits(), space);
            // Nobody takes it; it takes nothing.
            queue.put(&more).await.unwrap();
            assert!(queue.is_empty());
            assert_eq!(queue.share.room.available_permits(), share);
        }
    }

    #[tokio::test]
    async fn last_space_of_a_disk_is_left_alone() {
        let mut space = SpillSpace::new(std::env::temp_dir(), 1000);
        space.reserve = u64::MAX;
        let queue = SpillQueue::new(SpillShare::new(Arc::new(space), 1000));
        let refused = queue.put(&Bytes::from_static(b"x")).await;
        assert!(
            matches!(refused, Err(SpillError::NoSpace(..))),
            "{refused:?}"
        );
        assert_eq!(queue.share.room.available_permits(), 1000);
    }

    #[tokio::test]
    async fn file_system_that_has_no_such_files_is_named() {
        let space = SpillSpace::new("/proc".into(), 1000);
        let queue = SpillQueue::new(SpillShare::new(Arc::new(space), 1000));
        let refused = queue.put(&Bytes::from_static(b"x")).await.unwrap_err();
        assert!(refused.to_string().contains("/proc"), "{refused}");
    }
}
