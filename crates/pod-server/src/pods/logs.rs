//! Logs: what the containers wrote, from their log files, all instances of a
//! container one after the other or the one before the newest; on request only the
//! last of it, and until the pod has ended. Who follows a log goes on where it is
//! rotated; else it begins with its present file, as in kubectl.

mod rotation;
mod tail;
#[cfg(test)]
mod tests;

use super::Answers;
use super::others::Others;
use crate::cri_log::{Parser, Record};
use crate::status;
use pod_api::v1::{LogsRequest, LogsResponse, logs_response::Stream};
use pod_engine::{EngineError, LogFile, LogFiles, PodEngine};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// How often files are looked at while following.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// The stream of one call. Its files are read by a blocking task that waits for a
/// slow caller, and ends when the caller is gone.
pub(crate) fn logs(
    engine: &PodEngine,
    others: &Others,
    request: LogsRequest,
) -> Result<Answers<LogsResponse>, Status> {
    let (source, all) = find(engine, others, &request.pod).map_err(|e| status::of_engine(&e))?;
    let names = if request.containers.is_empty() {
        all
    } else {
        request.containers
    };
    let mut tails = Vec::with_capacity(names.len());
    for name in names {
        let files = source.files(&name).map_err(|e| status::of_engine(&e))?;
        let instance = if request.previous {
            Some(previous(&files).ok_or_else(|| {
                Status::not_found(format!(
                    "container {name} of pod {} has no instance before this one",
                    request.pod
                ))
            })?)
        } else {
            None
        };
        tails.push(Tail::new(name, instance, request.since_ns));
    }
    let (sender, receiver) = mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        let read = request
            .tail_lines
            .map_or(Ok(()), |lines| skip(&source, &mut tails, lines))
            .and_then(|()| read(&source, &mut tails, request.follow, &sender));
        if let Err(error) = read {
            let status = Status::internal(format!("reading a log: {error}"));
            let _ = sender.blocking_send(Err(status));
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// The instance before the one that runs or has ended for good; of a container that
/// waits to be started again the one that ended last.
fn previous(files: &LogFiles) -> Option<usize> {
    let newest = files.files.len().checked_sub(1)?;
    if !files.finished && files.files[newest].complete {
        return Some(newest);
    }
    newest.checked_sub(1)
}

/// A pod, of the engine or of another.
struct Source {
    pod: String,
    known: String,
    engine: Result<PodEngine, Others>,
}

/// The pod, and the names of its containers.
fn find(
    engine: &PodEngine,
    others: &Others,
    name: &str,
) -> Result<(Source, Vec<String>), EngineError> {
    let (pod, names, engine): (_, Vec<_>, _) = match engine.get(name) {
        Err(EngineError::NoSuchPod(_)) => {
            let pod = others.find(name)?;
            let names = pod.containers.into_iter().map(|c| c.name).collect();
            (pod.id, names, Err(others.clone()))
        }
        pod => {
            let pod = pod?;
            let names = pod.all_containers().map(|c| c.name.clone()).collect();
            (pod.id.clone(), names, Ok(engine.clone()))
        }
    };
    let known = names.join(", ");
    Ok((Source { pod, known, engine }, names))
}

impl Source {
    fn files(&self, container: &str) -> Result<LogFiles, EngineError> {
        match &self.engine {
            Ok(engine) => engine.log_files(&self.pod, container),
            Err(others) => {
                let files = others.log_files(&self.pod, container);
                files.ok_or_else(|| EngineError::NoSuchContainer {
                    pod: self.pod.clone(),
                    container: container.to_owned(),
                    known: self.known.clone(),
                })
            }
        }
    }
}

type Sender = mpsc::Sender<Result<LogsResponse, Status>>;

/// Goes to where the last lines of each container begin.
fn skip(source: &Source, tails: &mut [Tail], lines: u64) -> io::Result<()> {
    for tail in tails {
        // A pod that was removed meanwhile has nothing to read.
        if let Ok(files) = source.files(&tail.container) {
            let wanted = tail.wanted(&files.files);
            let place = tail::begin(wanted, lines)?;
            tail.done = place.file;
            tail.offset = place.offset;
        }
    }
    Ok(())
}

/// Reads until everything was sent; while following, until the containers have
/// ended for good.
fn read(source: &Source, tails: &mut [Tail], follow: bool, sender: &Sender) -> io::Result<()> {
    loop {
        let mut finished = true;
        for tail in &mut *tails {
            // Asked before reading: what is complete now is read to its end below.
            // A pod that was removed meanwhile has no files: nothing more to read.
            let Ok(files) = source.files(&tail.container) else {
                return Ok(());
            };
            // An earlier instance is complete.
            finished &= files.finished || tail.instance.is_some();
            if !tail.read(&files.files, sender)? {
                return Ok(());
            }
        }
        if finished || !follow || sender.is_closed() {
            return Ok(());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// How far one container's files were read.
struct Tail {
    container: String,
    /// Of this instance only.
    instance: Option<usize>,
    /// Nothing that was written before, in nanoseconds since the epoch.
    since_ns: i64,
    /// Files of earlier instances, read to their end.
    done: usize,
    /// Where reading begins in the file after these, in bytes.
    offset: u64,
    open: Option<(File, Parser)>,
}

impl Tail {
    fn new(container: String, instance: Option<usize>, since_ns: i64) -> Self {
        Self {
            container,
            instance,
            since_ns,
            done: 0,
            offset: 0,
            open: None,
        }
    }

    /// Those of all files that are to be read.
    fn wanted<'a>(&self, files: &'a [LogFile]) -> &'a [LogFile] {
        match self.instance {
            None => files,
            Some(instance) => files.get(instance..=instance).unwrap_or_default(),
        }
    }

    /// Sends what is new; false when the caller is gone.
    fn read(&mut self, files: &[LogFile], sender: &Sender) -> io::Result<bool> {
        let files = self.wanted(files);
        while let Some(file) = files.get(self.done) {
            if !self.read_file(&file.path, sender)? {
                return Ok(false);
            }
            if !file.complete {
                break;
            }
            self.open = None;
            self.done += 1;
        }
        Ok(true)
    }

    /// Reads one file on to its present end, and over its rotations; false when the
    /// caller is gone.
    fn read_file(&mut self, path: &Path, sender: &Sender) -> io::Result<bool> {
        if self.open.is_none() {
            match File::open(path) {
                Ok(mut file) => {
                    file.seek(SeekFrom::Start(std::mem::take(&mut self.offset)))?;
                    self.open = Some((file, Parser::default()));
                }
                // Not begun yet, or an instance that never started.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        loop {
            if !self.read_on(sender)? {
                return Ok(false);
            }
            let Some((file, _)) = &self.open else {
                return Ok(true);
            };
            let Some(next) = rotation::next(path, file)? else {
                return Ok(true);
            };
            // What was written between the two looks: by now that is all.
            if !self.read_on(sender)? {
                return Ok(false);
            }
            self.open = Some((next, Parser::default()));
        }
    }

    /// Reads the open file on to its present end; false when the caller is gone.
    fn read_on(&mut self, sender: &Sender) -> io::Result<bool> {
        let Some((file, parser)) = &mut self.open else {
            return Ok(true);
        };
        let mut bytes = vec![0; CHUNK];
        loop {
            let n = file.read(&mut bytes)?;
            if n == 0 {
                return Ok(true);
            }
            let mut records = parser.push(&bytes[..n]);
            records.retain(|record| record.time_ns >= self.since_ns);
            for record in records {
                if sender
                    .blocking_send(Ok(message(&self.container, record)))
                    .is_err()
                {
                    return Ok(false);
                }
            }
        }
    }
}

fn message(container: &str, record: Record) -> LogsResponse {
    let stream = if record.stderr {
        Stream::Stderr
    } else {
        Stream::Stdout
    };
    LogsResponse {
        container: container.into(),
        stream: stream.into(),
        time_ns: record.time_ns,
        data: record.data,
    }
}
