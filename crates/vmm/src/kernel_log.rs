//! The guest kernel's log: what it prints on its console, in a file of bounded
//! size.
//!
//! A guest may print what and as fast as it likes. The file keeps to its limit
//! by dropping the older half when it is full; a flood is thinned out, with a
//! marker that says how much is missing. The last panic is remembered for the
//! VM's exit record, also where the line itself was dropped.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Limit where the request names none.
const DEFAULT_LIMIT: u64 = 1 << 20;
/// Least limit: a boot's messages, and halves worth keeping.
const LEAST_LIMIT: u64 = 16 << 10;
/// Bytes that may come at once before a flood is thinned out: more than the
/// messages of a boot and of a panic together.
const BURST: u64 = 512 << 10;
/// Bytes a second that are kept of a lasting flood.
const RATE: u64 = 64 << 10;
/// Bytes of a line that are looked at.
const MAX_LINE: usize = 512;
/// What a kernel panic's line contains.
const PANIC: &str = "Kernel panic";

/// The kernel log of one guest.
#[derive(Debug)]
pub(crate) struct KernelLog {
    file: File,
    limit: u64,
    size: u64,
    line: Vec<u8>,
    panic: Option<String>,
    bucket: Bucket,
    dropped: u64,
    /// The file failed; said once.
    failed: bool,
}

impl KernelLog {
    /// Logs into `file`, which is open for appending, and for reading if the
    /// newest half is to survive when it is full. A `limit` of 0 means 1 MiB.
    pub(crate) fn new(file: File, limit: u64) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            limit: if limit == 0 { DEFAULT_LIMIT } else { limit }.max(LEAST_LIMIT),
            size,
            line: Vec::new(),
            panic: None,
            bucket: Bucket::full(Instant::now()),
            dropped: 0,
            failed: false,
        })
    }

    /// The last "Kernel panic" line, from these words on, printable.
    pub(crate) fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// Looks for a panic in what the guest printed.
    fn watch(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = MAX_LINE - self.line.len();
            self.line.extend(piece.iter().take(room));
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some(at) = line.find(PANIC) {
            let text = line[at..].chars().filter(|c| !c.is_control()).collect();
            self.panic = Some(text);
        }
        self.line.clear();
    }

    /// Appends to the file, as much as fits.
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        // Of more than the whole limit only the end would stay.
        let keep = usize::try_from(self.limit / 2).unwrap_or(usize::MAX);
        bytes = &bytes[bytes.len().saturating_sub(keep)..];
        let len = bytes.len() as u64;
        if self.size + len > self.limit {
            self.drop_older_half()?;
        }
        self.file.write_all(bytes)?;
        self.size += len;
        Ok(())
    }

    /// Rewrites the file with its newest half, from the start of a line.
    fn drop_older_half(&mut self) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        let start = size.saturating_sub(self.limit / 2);
        let len = usize::try_from(size - start).unwrap_or(0);
        let mut newest = vec![0; len];
        // A file that cannot be read is cut to nothing.
        let newest = match read_back(&self.file, &mut newest, start) {
            Ok(()) => {
                let line = newest.iter().position(|&byte| byte == b'\n');
                &newest[line.map_or(0, |end| end + 1)..]
            }
            Err(_) => &[],
        };
        self.file.set_len(0)?;
        self.size = 0;
        self.file.write_all(newest)?;
        self.size = newest.len() as u64;
        Ok(())
    }

    /// What [`Write::write`] does at a given time.
    fn write_at_time(&mut self, bytes: &[u8], now: Instant) {
        self.watch(bytes);
        let len = bytes.len() as u64;
        if !self.bucket.take(len, now) {
            self.dropped += len;
            return;
        }
        let result = self.mark_dropped().and_then(|()| self.append(bytes));
        self.note(result);
    }

    fn mark_dropped(&mut self) -> io::Result<()> {
        if self.dropped == 0 {
            return Ok(());
        }
        let marker = format!("\n[{} bytes dropped]\n", self.dropped);
        self.dropped = 0;
        self.append(marker.as_bytes())
    }

    /// A log that cannot be written is no reason to stop a guest.
    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failed = false,
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(%error, "the kernel log cannot be written");
            }
            Err(_) => {}
        }
    }

    /// The guest is gone: says what is missing at the end.
    pub(crate) fn finish(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
        let result = self.mark_dropped();
        self.note(result);
    }
}

impl Write for KernelLog {
    /// Takes everything; faults of the file are not the guest's affair.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_at_time(bytes, Instant::now());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fills `bytes` from `start` of a file that may be open for writing only.
fn read_back(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    file.read_exact_at(bytes, start).or_else(|_| {
        let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        again.read_exact_at(bytes, start)
    })
}

/// Tokens for bytes: [`BURST`] at most, [`RATE`] more each second.
#[derive(Debug)]
struct Bucket {
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
        }
    }

    /// Takes tokens for `len` bytes, if there are so many.
    fn take(&mut self, len: u64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let new = millis.saturating_mul(RATE) / 1000;
        if new > 0 {
            self.tokens = self.tokens.saturating_add(new).min(BURST);
            self.filled = now;
        }
        match self.tokens.checked_sub(len) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn log_in(dir: &tempfile::TempDir, limit: u64) -> (KernelLog, std::path::PathBuf) {
        let path = dir.path().join("kernel.log");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        (KernelLog::new(file, limit).unwrap(), path)
    }

    #[test]
    fn full_file_keeps_its_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log_in(&dir, LEAST_LIMIT);
        for number in 0..5000 {
            writeln!(log, "line {number}").unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.len() as u64 <= LEAST_LIMIT && text.len() as u64 >= LEAST_LIMIT / 3);
        assert!(text.starts_with("line "), "cut inside a line");
        assert!(text.ends_with("line 4999\n"));
    }

    #[test]
    fn one_write_larger_than_the_limit_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log_in(&dir, LEAST_LIMIT);
        let mut big = vec![b'x'; 100_000];
        big.extend_from_slice(b"the end");
        log.write_all(&big).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.len() as u64 <= LEAST_LIMIT && text.ends_with("the end"));
    }

    #[test]
    fn flood_is_thinned_out_with_a_marker() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log_in(&dir, 8 << 20);
        let start = Instant::now();
        let piece = [b'y'; 4096];
        for _ in 0..1000 {
            log.write_at_time(&piece, start);
        }
        assert!(std::fs::metadata(&path).unwrap().len() <= BURST);
        log.write_at_time(b"later\n", start + Duration::from_secs(1));
        let text = std::fs::read_to_string(path).unwrap();
        let dropped = 1000 * 4096 - BURST;
        assert!(text.ends_with(&format!("[{dropped} bytes dropped]\nlater\n")));
    }

    #[test]
    fn panic_is_remembered_even_of_a_dropped_line() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = log_in(&dir, 0);
        assert_eq!(log.panic(), None);
        let flood = vec![b'z'; 1 << 20];
        log.write_all(&flood).unwrap();
        log.write_all(b"\n[    0.7] Kernel pan").unwrap();
        log.write_all(b"ic - not syncing: \x1b[1mno init\r\n[ 0.8] more\n")
            .unwrap();
        assert_eq!(log.panic(), Some("Kernel panic - not syncing: [1mno init"));
    }

    #[test]
    fn panic_without_a_line_end_counts_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = log_in(&dir, 0);
        log.write_all(b"Kernel panic - late").unwrap();
        log.finish();
        assert_eq!(log.panic(), Some("Kernel panic - late"));
    }

    #[test]
    fn guest_goes_on_when_the_file_fails() {
        let full = File::options().append(true).open("/dev/full").unwrap();
        let mut log = KernelLog::new(full, 0).unwrap();
        log.write_all(b"Kernel panic - kept\n").unwrap();
        assert_eq!(log.panic(), Some("Kernel panic - kept"));
    }

    proptest! {
        #[test]
        fn limit_holds_for_any_writes(
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..12),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (mut log, path) = log_in(&dir, LEAST_LIMIT);
            for bytes in &writes {
                log.write_all(bytes).unwrap();
                prop_assert!(std::fs::metadata(&path).unwrap().len() <= LEAST_LIMIT);
            }
        }
    }
}
