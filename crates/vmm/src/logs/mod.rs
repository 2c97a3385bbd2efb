//! The containers' logs: their output, from the guest agent's streams into files
//! in the CRI log format. One thread a container, see `copier`.
//!
//! The process that runs the VM writes them, so that nothing is missing while
//! the daemon is away.

mod copier;
mod cri_format;
mod guest_stream;
mod readers;

use copier::ContainerLog;
use guest_api::proto::open_stream::Stream;
use guest_stream::StreamError;
use readers::Reader;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use vm_spec::proto::LogStatus;

/// Most logs at a time; each has a thread.
const MAX_LOGS: usize = 512;

/// Why a log call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// No log of this container is attached.
    #[error("no log of container {0:?} is attached")]
    NotAttached(String),
    /// Too many logs are attached.
    #[error("{MAX_LOGS} logs are attached already")]
    TooMany,
    /// Too many follow the output.
    #[error("too many follow the output of container {0:?} already")]
    TooManyReaders(String),
    /// The guest agent's stream could not be opened.
    #[error("the output of container {id:?} cannot be read")]
    Stream {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: StreamError,
    },
    /// The host refused a thread or descriptor.
    #[error("the thread of a log could not be started")]
    Thread(#[from] io::Error),
}

/// All logs of one VM.
#[derive(Debug)]
pub(crate) struct Logs {
    vsock: PathBuf,
    logs: Mutex<BTreeMap<String, Arc<ContainerLog>>>,
}

impl Logs {
    /// For the VM whose vsock is reached by the socket `vsock`.
    pub(crate) fn new(vsock: PathBuf) -> Self {
        Self {
            vsock,
            logs: Mutex::default(),
        }
    }

    /// Opens the container's streams and starts to copy them into `file`. Of a
    /// container whose log is attached already it only switches the file, which
    /// is how a log is rotated.
    pub(crate) fn attach(&self, id: &str, terminal: bool, file: File) -> Result<(), LogError> {
        {
            let logs = self.lock();
            if let Some(log) = logs.get(id) {
                log.switch_file(file);
                return Ok(());
            }
            if logs.len() >= MAX_LOGS {
                return Err(LogError::TooMany);
            }
        }
        // Without the lock: the agent may take its time.
        let open = |stream| {
            guest_stream::open(&self.vsock, id, stream).map_err(|source| LogError::Stream {
                id: id.to_owned(),
                source,
            })
        };
        let mut streams = vec![(Stream::Stdout, open(Stream::Stdout)?)];
        if !terminal {
            streams.push((Stream::Stderr, open(Stream::Stderr)?));
        }
        let log = ContainerLog::start(file, streams)?;
        if let Some(old) = self.lock().insert(id.to_owned(), log) {
            // Two calls at once for one container: the agent gave its streams
            // to the later one.
            old.cancel();
        }
        Ok(())
    }

    /// Sends the output of `streams` from now on to `socket`, too, which is
    /// non-blocking.
    pub(crate) fn follow(
        &self,
        id: &str,
        streams: Vec<Stream>,
        socket: OwnedFd,
    ) -> Result<(), LogError> {
        let log = self.find(id)?;
        if log.follow(Reader::new(socket, streams)) {
            Ok(())
        } else {
            Err(LogError::TooManyReaders(id.to_owned()))
        }
    }

    fn find(&self, id: &str) -> Result<Arc<ContainerLog>, LogError> {
        let log = self.lock().get(id).cloned();
        log.ok_or_else(|| LogError::NotAttached(id.to_owned()))
    }

    /// Waits until the log is drained or `deadline` has passed.
    pub(crate) fn drain(&self, id: &str, deadline: Instant) -> Result<LogStatus, LogError> {
        let log = self.find(id)?;
        log.wait_drained(deadline);
        Ok(log.status(id))
    }

    /// Forgets the log; ends the copying if it goes on.
    pub(crate) fn detach(&self, id: &str) -> Result<(), LogError> {
        let log = self
            .lock()
            .remove(id)
            .ok_or_else(|| LogError::NotAttached(id.to_owned()))?;
        log.cancel();
        Ok(())
    }

    /// State of every log.
    pub(crate) fn statuses(&self) -> Vec<LogStatus> {
        self.lock().iter().map(|(id, log)| log.status(id)).collect()
    }

    /// The guest is gone: waits until all logs are drained or `deadline` has
    /// passed.
    pub(crate) fn drain_all(&self, deadline: Instant) {
        let logs: Vec<_> = self.lock().clone().into_iter().collect();
        for (id, log) in logs {
            log.wait_drained(deadline);
            let status = log.status(&id);
            if !status.drained {
                tracing::error!(container = id, error = status.error, "output was lost");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<ContainerLog>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
