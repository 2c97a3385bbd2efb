//! The thread that copies one container's output into its log file.
//!
//! Both streams are read as they come, so records stand in the order of their
//! arrival. Each record is one write(2) of a file opened for appending.
//!
//! A file that cannot be written (a full disk) loses nothing: the error stands
//! in the status, the copier tries again every second and reads no more, so the
//! container's own writes block in the end, and only its own.
//!
//! Those who follow the output (`readers`) get it before the file.

use super::cri_format::Splitter;
use super::readers::{Reader, Readers, wait};
use guest_api::proto::open_stream::Stream;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use vm_spec::proto::LogStatus;

/// Bytes read at once.
const PIECE: usize = 32 << 10;
/// Time between attempts to write a file that fails.
const RETRY: Duration = Duration::from_secs(1);
/// How long a rotation waits for the record that goes into the old file: longer
/// only if the disk hangs.
const LAST_RECORD: Duration = Duration::from_secs(2);

/// Most who follow one container's output.
const MAX_READERS: usize = 32;

/// One container's log.
#[derive(Debug)]
pub(super) struct ContainerLog {
    state: Mutex<State>,
    /// `drained`, `cancelled` or `file` changed, or an old file is done with.
    changed: Condvar,
    /// Readable once it is cancelled, or `newcomers` has some.
    wake: OwnedFd,
}

#[derive(Debug)]
struct State {
    file: Arc<File>,
    /// What a record is being written to.
    writing: Option<Arc<File>>,
    drained: bool,
    cancelled: bool,
    error: String,
    bytes: u64,
    /// Readers that the copier does not have yet.
    newcomers: Vec<Reader>,
    /// How many it has.
    readers: usize,
}

/// One of a container's outputs on its way.
#[derive(Debug)]
struct Output {
    stream: Stream,
    splitter: Splitter,
    socket: UnixStream,
}

impl Output {
    fn new(stream: Stream, socket: UnixStream) -> Self {
        let name = match stream {
            Stream::Stderr => "stderr",
            _ => "stdout",
        };
        Self {
            stream,
            splitter: Splitter::new(name),
            socket,
        }
    }
}

impl ContainerLog {
    /// Starts copying `streams` into `file`.
    pub(super) fn start(file: File, streams: Vec<(Stream, UnixStream)>) -> io::Result<Arc<Self>> {
        let log = Arc::new(Self {
            state: Mutex::new(State {
                file: Arc::new(file),
                writing: None,
                drained: false,
                cancelled: false,
                error: String::new(),
                bytes: 0,
                newcomers: Vec::new(),
                readers: 0,
            }),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let copier = log.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || {
                let mut readers = Readers::default();
                copier.copy(streams, &mut readers);
                copier.lock().drained = true;
                copier.changed.notify_all();
                if copier.welcome(&mut readers) {
                    readers.finish(&copier.wake);
                }
            })?;
        Ok(log)
    }

    /// Goes on in another file after a rotation; the old one is complete when this
    /// returns, so that it can be read or compressed.
    pub(super) fn switch_file(&self, file: File) {
        let mut state = self.lock();
        state.file = Arc::new(file);
        self.changed.notify_all();
        let busy = |state: &mut State| {
            let writing = state.writing.as_ref();
            writing.is_some_and(|file| !Arc::ptr_eq(file, &state.file))
        };
        drop(self.changed.wait_timeout_while(state, LAST_RECORD, busy));
    }

    /// Ends the copying; what was not read is lost.
    pub(super) fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_all();
        self.wake_up();
    }

    fn wake_up(&self) {
        // An eventfd takes this unless it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Hands the output to another reader from now on; false if there are too many.
    pub(super) fn follow(&self, reader: Reader) -> bool {
        let mut state = self.lock();
        if state.drained {
            // Dropped: there is no more output.
            return true;
        }
        if state.readers + state.newcomers.len() >= MAX_READERS {
            return false;
        }
        state.newcomers.push(reader);
        drop(state);
        self.wake_up();
        true
    }

    /// Takes the newcomers in; false if the log is cancelled.
    fn welcome(&self, readers: &mut Readers) -> bool {
        // Before the look, so that nothing after it is missed.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut state = self.lock();
        readers.add(std::mem::take(&mut state.newcomers));
        state.readers = readers.len();
        !state.cancelled
    }

    /// Its state now.
    pub(super) fn status(&self, container_id: &str) -> LogStatus {
        let state = self.lock();
        LogStatus {
            container_id: container_id.to_owned(),
            drained: state.drained,
            error: state.error.clone(),
            bytes: state.bytes,
        }
    }

    /// Waits until it is drained or `deadline` has passed.
    pub(super) fn wait_drained(&self, deadline: Instant) {
        let state = self.lock();
        let left = deadline.saturating_duration_since(Instant::now());
        drop(
            self.changed
                .wait_timeout_while(state, left, |state| !state.drained),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until all streams have ended.
    fn copy(&self, streams: Vec<(Stream, UnixStream)>, readers: &mut Readers) {
        let outputs = streams.into_iter();
        let mut outputs: Vec<Output> = outputs.map(|(s, u)| Output::new(s, u)).collect();
        let mut piece = vec![0; PIECE];
        while !outputs.is_empty() {
            let Some(ready) = self.wait_readable(&outputs, readers) else {
                return;
            };
            let mut ended = Vec::new();
            for index in ready {
                let output = &mut outputs[index];
                let mut emit = |record: &[u8], content| self.write_record(record, content);
                let now = SystemTime::now();
                let goes_on = match output.socket.read(&mut piece) {
                    Ok(got) if got > 0 => {
                        readers.push(output.stream, &piece[..got]);
                        output.splitter.push(&piece[..got], now, &mut emit)
                    }
                    Err(e) if is_transient(&e) => true,
                    // An error means that the vsock is gone with its guest: as
                    // good as the end.
                    Ok(_) | Err(_) => {
                        ended.push(index);
                        output.splitter.finish(now, &mut emit)
                    }
                };
                if !goes_on {
                    return;
                }
            }
            for index in ended.into_iter().rev() {
                outputs.remove(index);
            }
        }
    }

    /// Waits for bytes, and looks after the readers meanwhile; the indices of the
    /// outputs that have some, or `None` once it is cancelled.
    fn wait_readable(&self, outputs: &[Output], readers: &mut Readers) -> Option<Vec<usize>> {
        let input = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds: Vec<PollFd<'_>> = vec![input(self.wake.as_fd())];
        fds.extend(outputs.iter().map(|output| input(output.socket.as_fd())));
        fds.extend(readers.poll_fds());
        match wait(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                self.lock().error = format!("the streams cannot be waited for: {error}");
                return None;
            }
        }
        let flags: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let (of_outputs, of_readers) = flags[1..].split_at(outputs.len());
        readers.on_polled(of_readers);
        // Also where only a reader went: their number is kept there.
        if !self.welcome(readers) {
            return None;
        }
        let ready = of_outputs.iter().enumerate();
        let ready = ready.filter(|(_, flags)| !flags.is_empty());
        Some(ready.map(|(index, _)| index).collect())
    }

    /// Writes a record, however long it takes; false if it is cancelled.
    fn write_record(&self, record: &[u8], content: usize) -> bool {
        let mut file = self.begin_record();
        let mut rest = record;
        while !rest.is_empty() {
            let error = match (&*file).write(rest) {
                Ok(written) if written > 0 => {
                    rest = &rest[written..];
                    continue;
                }
                Ok(_) => io::ErrorKind::WriteZero.into(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            let mut state = self.lock();
            state.error = format!("the log file cannot be written: {error}");
            let (state, _) = self
                .changed
                .wait_timeout_while(state, RETRY, |state| {
                    !state.cancelled && Arc::ptr_eq(&state.file, &file)
                })
                .unwrap_or_else(PoisonError::into_inner);
            if state.cancelled {
                return false;
            }
            if !Arc::ptr_eq(&state.file, &file) {
                // A new file starts with a whole record.
                drop(state);
                file = self.begin_record();
                rest = record;
            }
        }
        let mut state = self.lock();
        state.error.clear();
        state.bytes += content as u64;
        state.writing = None;
        if !Arc::ptr_eq(&state.file, &file) {
            self.changed.notify_all();
        }
        true
    }

    /// The file for a record.
    fn begin_record(&self) -> Arc<File> {
        let mut state = self.lock();
        let file = state.file.clone();
        if state.writing.replace(file.clone()).is_some() {
            // Of an old file, which was given up.
            self.changed.notify_all();
        }
        file
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    fn append(path: &std::path::Path) -> File {
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
    }

    fn contents(path: &std::path::Path) -> Vec<String> {
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn both_streams_end_up_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut out, out_theirs) = pair();
        let (mut err, err_theirs) = pair();
        let log = ContainerLog::start(
            append(&path),
            vec![(Stream::Stdout, out_theirs), (Stream::Stderr, err_theirs)],
        )
        .unwrap();
        out.write_all(b"to out\nrest").unwrap();
        drop(out);
        err.write_all(b"to err\n").unwrap();
        assert!(!log.status("c").drained);
        drop(err);
        log.wait_drained(far());
        let status = log.status("c");
        assert!(status.drained && status.error.is_empty());
        assert_eq!(status.bytes, 18);
        let mut got = contents(&path);
        got.sort();
        assert_eq!(got, ["stderr F to err", "stdout F to out", "stdout P rest"]);
    }

    #[test]
    fn full_disk_is_reported_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut out, theirs) = pair();
        let full = File::options().append(true).open("/dev/full").unwrap();
        let log = ContainerLog::start(full, vec![(Stream::Stdout, theirs)]).unwrap();
        out.write_all(b"precious\n").unwrap();
        drop(out);
        while log.status("c").error.is_empty() {
            std::thread::yield_now();
        }
        let status = log.status("c");
        assert!(status.error.contains("No space left"), "{}", status.error);
        assert!(!status.drained);
        log.switch_file(append(&path));
        log.wait_drained(far());
        assert_eq!(contents(&path), ["stdout F precious"]);
        assert!(log.status("c").error.is_empty());
    }

    #[test]
    fn rotation_under_fast_output_loses_and_doubles_no_line() {
        const LINES: usize = 200_000;
        const FILES: usize = 40;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut out, theirs) = pair();
        let log = ContainerLog::start(append(&path), vec![(Stream::Stdout, theirs)]).unwrap();
        let printer = std::thread::spawn(move || {
            for n in 0..LINES {
                writeln!(out, "{n}").unwrap();
            }
        });
        let mut old = Vec::new();
        for n in 0..FILES {
            // Some output first, so that each file has a part of it.
            let before = log.status("c").bytes;
            while log.status("c").bytes < before + 1000 && !log.status("c").drained {
                std::thread::yield_now();
            }
            let rotated = dir.path().join(format!("log.{n}"));
            std::fs::rename(&path, &rotated).unwrap();
            log.switch_file(append(&path));
            old.push((std::fs::metadata(&rotated).unwrap().len(), rotated));
        }
        printer.join().unwrap();
        log.wait_drained(far());
        let mut lines = Vec::new();
        for (length, rotated) in old {
            // Complete at the moment of the switch.
            assert_eq!(std::fs::metadata(&rotated).unwrap().len(), length);
            lines.extend(contents(&rotated));
        }
        lines.extend(contents(&path));
        let expected = (0..LINES).map(|n| format!("stdout F {n}"));
        assert!(lines.into_iter().eq(expected));
    }

    #[test]
    fn cancelling_ends_a_blocked_copier() {
        let (mut out, theirs) = pair();
        let full = File::options().append(true).open("/dev/full").unwrap();
        let log = ContainerLog::start(full, vec![(Stream::Stdout, theirs)]).unwrap();
        out.write_all(b"x\n").unwrap();
        while log.status("c").error.is_empty() {
            std::thread::yield_now();
        }
        log.cancel();
        log.wait_drained(far());
        assert!(log.status("c").drained);
    }

    #[test]
    fn cancelling_ends_a_copier_that_waits_for_output() {
        let (_out, theirs) = pair();
        let file = File::options().append(true).open("/dev/null").unwrap();
        let log = ContainerLog::start(file, vec![(Stream::Stdout, theirs)]).unwrap();
        log.cancel();
        log.wait_drained(far());
        assert!(log.status("c").drained);
    }
}
