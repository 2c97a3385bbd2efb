//! Where the last lines of a container's logs begin: read from their end, so that
//! the last ten lines of a gigabyte cost ten lines.

use crate::cri_log::{self, End};
use pod_engine::LogFile;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read at a time.
const CHUNK: u64 = 64 << 10;
/// Longest record that is looked for an end of; the writer's are below 20 KiB.
const MAX_RECORD: usize = 1 << 20;

/// A place in the files of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Which of the files.
    pub(super) file: usize,
    /// Bytes of it that lie before.
    pub(super) offset: u64,
}

/// Where the last `lines` lines begin. A last line that has not ended counts as one.
pub(super) fn begin(files: &[LogFile], lines: u64) -> io::Result<Place> {
    let mut left = Left {
        lines,
        newest: true,
    };
    for (file, log) in files.iter().enumerate().rev() {
        let found = match File::open(&log.path) {
            Ok(opened) => in_file(&opened, &mut left)?,
            // Not begun yet, or an instance that never started.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if let Some(offset) = found {
            return Ok(Place { file, offset });
        }
    }
    Ok(Place { file: 0, offset: 0 })
}

/// How many lines may still be passed.
struct Left {
    lines: u64,
    /// No record was passed yet.
    newest: bool,
}

impl Left {
    /// Whether this record, going backwards, is one too many.
    fn passes(&mut self, record: &[u8]) -> bool {
        let Some(end) = cri_log::end(record) else {
            return false;
        };
        let newest = std::mem::take(&mut self.newest);
        if end == End::Line || newest {
            match self.lines.checked_sub(1) {
                Some(left) => self.lines = left,
                None => return true,
            }
        }
        false
    }
}

/// Where in this file the lines begin; `None`: before it.
fn in_file(file: &File, left: &mut Left) -> io::Result<Option<u64>> {
    let mut at = file.metadata()?.len();
    // Bytes from `at` on that are no whole record yet. What is being written at the
    // end of the file is none either, and is read with what follows it.
    let mut rest: Vec<u8> = Vec::new();
    let mut whole = false;
    while at > 0 {
        let size = at.min(CHUNK);
        at -= size;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut bytes, at)?;
        bytes.append(&mut rest);
        rest = bytes;
        if !whole {
            let Some(end) = rest.iter().rposition(|b| *b == b'\n') else {
                rest.clear();
                continue;
            };
            rest.truncate(end + 1);
            whole = true;
        }
        // From the last record to the first that begins in `rest`.
        while let Some((_, before)) = rest.split_last()
            && let Some(end) = before.iter().rposition(|b| *b == b'\n')
        {
            if left.passes(&rest[end + 1..]) {
                return Ok(Some(at + rest.len() as u64));
            }
            rest.truncate(end + 1);
        }
        if rest.len() > MAX_RECORD {
            // No record of ours: nothing of it is shown anyway.
            rest.clear();
            whole = false;
        }
    }
    if !rest.is_empty() && left.passes(&rest) {
        return Ok(Some(rest.len() as u64));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn files(texts: &[&str]) -> (tempfile::TempDir, Vec<LogFile>) {
        let dir = tempfile::tempdir().unwrap();
        let file = |(n, text): (usize, &&str)| {
            let path = dir.path().join(n.to_string());
            std::fs::write(&path, text).unwrap();
            LogFile {
                path,
                complete: true,
            }
        };
        let files = texts.iter().enumerate().map(file).collect();
        (dir, files)
    }

    fn record(tag: &str, text: &str) -> String {
        format!("2016-10-06T00:17:09.669794202Z stdout {tag} {text}\n")
    }

    /// What follows the place.
    fn last(files: &[LogFile], lines: u64) -> String {
        let place = begin(files, lines).unwrap();
        let text = |n: usize| std::fs::read_to_string(&files[n].path).unwrap_or_default();
        let from = usize::try_from(place.offset).unwrap();
        let mut all = text(place.file)[from..].to_owned();
        for later in place.file + 1..files.len() {
            all.push_str(&text(later));
        }
        all
    }

    #[test]
    fn lines_are_counted_over_instances_and_pieces_belong_to_their_line() {
        let (one, two) = (record("F", "one"), record("F", "two"));
        let three = record("P", "thr") + &record("P", "e") + &record("F", "e");
        let (_dir, mut files) = files(&[&(one.clone() + &two), "", &three]);
        let none = LogFile {
            path: PathBuf::from("/nonexistent/log"),
            complete: true,
        };
        files.push(none);
        assert_eq!(last(&files, 0), "");
        assert_eq!(last(&files, 1), three);
        assert_eq!(last(&files, 2), two.clone() + &three);
        for many in [3, 4, u64::MAX] {
            assert_eq!(last(&files, many), one.clone() + &two + &three);
        }
    }

    #[test]
    fn line_without_an_end_is_one_and_a_record_that_is_being_written_is_none() {
        let (one, open) = (record("F", "one"), record("P", "two"));
        let half = "2016-10-06T00:17:09.66979";
        let (_dir, files) = files(&[&(one.clone() + &open + half)]);
        assert_eq!(last(&files, 1), open.clone() + half);
        assert_eq!(last(&files, 2), one + &open + half);
    }

    #[test]
    fn long_logs_are_cut_at_records_wherever_pieces_are_read() {
        let lines: Vec<String> = (0..3000)
            .map(|n| record("F", &"x".repeat(n % 97)))
            .collect();
        let (_dir, files) = files(&[&lines.concat()]);
        for wanted in [1, 2, 700, 1500, 2999] {
            let expected = lines[lines.len() - wanted..].concat();
            assert_eq!(last(&files, wanted as u64), expected);
        }
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let good = record("F", "good");
        let bad = "no record\n\n".to_owned() + &"y".repeat(MAX_RECORD * 2);
        let (_dir, files) = files(&[&(good.clone() + &good + &bad)]);
        assert_eq!(last(&files, 1), good + &bad);
    }
}
