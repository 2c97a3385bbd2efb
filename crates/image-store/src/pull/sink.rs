//! Where the bytes of a layer go while they come.

use tokio::{sync::mpsc, task::JoinHandle};

use super::registry::RegistryError;
use crate::{
    ImageError, ImageStore,
    blobs::{BlobWriter, StagedBlob},
};

/// Parts of a layer that may wait for the disk.
const PARTS_WAITING: usize = 32;

/// Why a download stopped.
pub(super) enum Interrupted {
    Registry(RegistryError),
    /// The disk does not take it; [`Sink::finish`] says why.
    Sink,
}

impl From<RegistryError> for Interrupted {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

enum Part {
    Bytes(Vec<u8>),
    Restart,
}

/// Hashes and writes a blob in a thread where that may block.
pub(super) struct Sink {
    parts: mpsc::Sender<Part>,
    writer: JoinHandle<Result<StagedBlob, ImageError>>,
}

impl Sink {
    pub(super) fn start(store: ImageStore, alive: mpsc::Sender<()>) -> Self {
        let (parts, mut incoming) = mpsc::channel(PARTS_WAITING);
        let writer = tokio::task::spawn_blocking(move || {
            let _alive = alive;
            let dirs = &store.inner.dirs;
            let mut writer = BlobWriter::new(dirs)?;
            while let Some(part) = incoming.blocking_recv() {
                match part {
                    Part::Bytes(bytes) => writer.append(&bytes)?,
                    Part::Restart => writer = BlobWriter::new(dirs)?,
                }
            }
            Ok(writer.finish())
        });
        Self { parts, writer }
    }

    pub(super) async fn append(&mut self, bytes: Vec<u8>) -> Result<(), Interrupted> {
        self.parts
            .send(Part::Bytes(bytes))
            .await
            .map_err(|_| Interrupted::Sink)
    }

    pub(super) async fn restart(&mut self) -> Result<(), Interrupted> {
        self.parts
            .send(Part::Restart)
            .await
            .map_err(|_| Interrupted::Sink)
    }

    pub(super) async fn finish(self) -> Result<StagedBlob, ImageError> {
        drop(self.parts);
        self.writer.await.map_err(|_| ImageError::Thread)?
    }
}
