//! Logs: what the containers wrote, from their log files, all instances of a
//! container one after the other; on request until the pod has ended.

use super::Answers;
use super::others::Others;
use crate::cri_log::{Parser, Record};
use crate::status;
use pod_api::v1::{LogsRequest, LogsResponse, logs_response::Stream};
use pod_engine::{EngineError, LogFile, LogFiles, PodEngine};
use std::fs::File;
use std::io::{self, Read};
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
    for name in &names {
        source.files(name).map_err(|e| status::of_engine(&e))?;
    }
    let (sender, receiver) = mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        let mut tails: Vec<Tail> = names.into_iter().map(Tail::new).collect();
        if let Err(status) = read(&source, &mut tails, request.follow, &sender) {
            let _ = sender.blocking_send(Err(status));
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
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

/// Reads until everything was sent; while following, until the containers have
/// ended for good.
fn read(source: &Source, tails: &mut [Tail], follow: bool, sender: &Sender) -> Result<(), Status> {
    loop {
        let mut finished = true;
        for tail in &mut *tails {
            // Asked before reading: what is complete now is read to its end below.
            // A pod that was removed meanwhile has no files: nothing more to read.
            let Ok(files) = source.files(&tail.container) else {
                return Ok(());
            };
            finished &= files.finished;
            if !tail
                .read(&files.files, sender)
                .map_err(|e| Status::internal(e.to_string()))?
            {
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
    /// Files of earlier instances, read to their end.
    done: usize,
    open: Option<(File, Parser)>,
}

impl Tail {
    fn new(container: String) -> Self {
        Self {
            container,
            done: 0,
            open: None,
        }
    }

    /// Sends what is new; false when the caller is gone.
    fn read(&mut self, files: &[LogFile], sender: &Sender) -> io::Result<bool> {
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

    /// Reads one file on to its present end; false when the caller is gone.
    fn read_file(&mut self, path: &Path, sender: &Sender) -> io::Result<bool> {
        if self.open.is_none() {
            match File::open(path) {
                Ok(file) => self.open = Some((file, Parser::default())),
                // Not begun yet, or an instance that never started.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        let Some((file, parser)) = &mut self.open else {
            return Ok(true);
        };
        let mut bytes = vec![0; CHUNK];
        loop {
            let n = file.read(&mut bytes)?;
            if n == 0 {
                return Ok(true);
            }
            for record in parser.push(&bytes[..n]) {
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
