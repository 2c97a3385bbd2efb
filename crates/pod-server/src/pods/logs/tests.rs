//! Logs that are rotated while they are followed.

use super::*;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// A container's log and its writer, as spherule-vmm is one: it goes on in the new
/// file between two records.
struct Log {
    dir: tempfile::TempDir,
    file: File,
    rotations: usize,
}

impl Log {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = append(&dir.path().join("c.log"));
        Self {
            dir,
            file,
            rotations: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("c.log")
    }

    fn write(&mut self, text: &str) {
        let record = format!("2016-10-06T00:17:09.669794202Z stdout F {text}\n");
        self.file.write_all(record.as_bytes()).unwrap();
    }

    fn rename(&mut self) -> PathBuf {
        let old = self
            .path()
            .with_extension(format!("log.{}", self.rotations));
        self.rotations += 1;
        std::fs::rename(self.path(), &old).unwrap();
        old
    }

    fn rotate(&mut self) -> PathBuf {
        let old = self.rename();
        self.file = append(&self.path());
        old
    }
}

fn append(path: &Path) -> File {
    let mut options = File::options();
    options.create(true).append(true).open(path).unwrap()
}

/// A reader of that log.
struct Follower {
    tail: Tail,
    path: PathBuf,
    sender: Sender,
    receiver: mpsc::Receiver<Result<LogsResponse, Status>>,
}

impl Follower {
    fn of(log: &Log) -> Self {
        let (sender, receiver) = mpsc::channel(100_000);
        Self {
            tail: Tail::new("c".into(), None, 0),
            path: log.path(),
            sender,
            receiver,
        }
    }

    /// What one look brings.
    fn look(&mut self) -> Vec<String> {
        let files = [LogFile {
            path: self.path.clone(),
            complete: false,
        }];
        assert!(self.tail.read(&files, &self.sender).unwrap());
        let mut lines = Vec::new();
        while let Ok(line) = self.receiver.try_recv() {
            let text = String::from_utf8(line.unwrap().data).unwrap();
            lines.push(text.trim_end().to_owned());
        }
        lines
    }
}

#[test]
fn old_file_is_read_until_a_record_is_in_the_new_one() {
    let mut log = Log::new();
    let mut follower = Follower::of(&log);
    log.write("one");
    assert_eq!(follower.look(), ["one"]);
    log.rename();
    log.write("two");
    assert_eq!(follower.look(), ["two"]);
    // The new file is there before its writer knows of it.
    let new = append(&log.path());
    log.write("three");
    assert_eq!(follower.look(), ["three"]);
    log.write("four");
    log.file = new;
    log.write("five");
    log.write("six");
    assert_eq!(follower.look(), ["four", "five", "six"]);
    log.write("seven");
    assert_eq!(follower.look(), ["seven"]);
}

#[test]
fn reader_that_is_late_goes_through_all_rotations() {
    let mut log = Log::new();
    let mut follower = Follower::of(&log);
    log.write("older");
    let older = log.rotate();
    log.write("one");
    assert_eq!(follower.look(), ["one"]);
    // Times of files go by ticks of the kernel's clock.
    for text in ["two", "three", "four"] {
        std::thread::sleep(Duration::from_millis(20));
        log.rotate();
        log.write(text);
    }
    // None of the log's: compressed, being compressed, another log's.
    for other in ["c.log.9.gz", "c.log.9.tmp", "c.logs", "d.log.1"] {
        std::fs::write(log.dir.path().join(other), "not read").unwrap();
    }
    // An empty one is what a rotation without output leaves.
    log.rotate();
    log.rotate();
    assert_eq!(follower.look(), ["two", "three", "four"]);
    log.write("five");
    assert_eq!(follower.look(), ["five"]);
    assert!(older.exists());
}

#[test]
fn rotation_that_is_taken_back_and_one_of_nothing_double_nothing() {
    let mut log = Log::new();
    let mut follower = Follower::of(&log);
    log.write("one");
    assert_eq!(follower.look(), ["one"]);
    let old = log.rename();
    assert!(follower.look().is_empty());
    std::fs::rename(old, log.path()).unwrap();
    log.write("two");
    assert_eq!(follower.look(), ["two"]);
    // One that begins with an empty file, which is then rotated.
    log.rotate();
    let mut follower = Follower::of(&log);
    assert!(follower.look().is_empty());
    log.rotate();
    log.write("three");
    assert_eq!(follower.look(), ["three"]);
}

#[test]
fn log_that_was_removed_with_its_directory_has_ended() {
    let mut log = Log::new();
    let mut follower = Follower::of(&log);
    log.write("one");
    assert_eq!(follower.look(), ["one"]);
    log.write("two");
    log.dir.close().unwrap();
    assert_eq!(follower.look(), ["two"]);
    assert!(follower.look().is_empty());
}

#[test]
fn nothing_is_lost_or_doubled_under_fast_output() {
    const LINES: usize = 30_000;
    let mut log = Log::new();
    let mut follower = Follower::of(&log);
    let over = AtomicBool::new(false);
    let lines = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..LINES {
                log.write(&n.to_string());
                if n % 3000 == 2999 {
                    // Times of files go by ticks of the kernel's clock.
                    std::thread::sleep(Duration::from_millis(20));
                    log.rotate();
                }
            }
            over.store(true, Ordering::SeqCst);
        });
        let mut lines = Vec::new();
        loop {
            let last = over.load(Ordering::SeqCst);
            lines.extend(follower.look());
            if last {
                return lines;
            }
        }
    });
    let wanted: Vec<_> = (0..LINES).map(|n| n.to_string()).collect();
    assert!(lines == wanted, "{} lines of {LINES}", lines.len());
}
