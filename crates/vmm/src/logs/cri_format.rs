//! The CRI log format: `2016-10-06T00:17:09.669794202Z stdout F line\n`.
//!
//! A record is a line without its line feed (F), or a part of one (P): of a line
//! longer than [`MAX_CONTENT`], as other runtimes split it too, or of a last
//! line that has no line feed. Joining the contents, with a line feed after each
//! F, gives the container's bytes back exactly.

use std::io::Write;
use std::time::{Duration, SystemTime};

/// Most bytes of content in a record.
pub(super) const MAX_CONTENT: usize = 16 << 10;
/// Seconds of a day.
const DAY: u64 = 86_400;

/// Cuts one stream of a container into records.
#[derive(Debug)]
pub(super) struct Splitter {
    stream: &'static str,
    /// Bytes without a line feed yet; at most [`MAX_CONTENT`].
    pending: Vec<u8>,
    record: Vec<u8>,
}

impl Splitter {
    /// For "stdout" or "stderr".
    pub(super) fn new(stream: &'static str) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            record: Vec::new(),
        }
    }

    /// Takes bytes that arrived at `time`; `emit` gets each whole record and
    /// returns false to have no more.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        time: SystemTime,
        emit: &mut dyn FnMut(&[u8], usize) -> bool,
    ) -> bool {
        while !bytes.is_empty() {
            let room = MAX_CONTENT - self.pending.len();
            let line = bytes.iter().take(room + 1).position(|&byte| byte == b'\n');
            let whole = match line {
                Some(end) => {
                    self.pending.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    true
                }
                None if bytes.len() > room => {
                    self.pending.extend_from_slice(&bytes[..room]);
                    bytes = &bytes[room..];
                    false
                }
                None => {
                    self.pending.extend_from_slice(bytes);
                    return true;
                }
            };
            if !self.emit(whole, time, emit) {
                return false;
            }
        }
        true
    }

    /// The stream has ended: what has no line feed becomes a last record.
    pub(super) fn finish(
        &mut self,
        time: SystemTime,
        emit: &mut dyn FnMut(&[u8], usize) -> bool,
    ) -> bool {
        self.pending.is_empty() || self.emit(false, time, emit)
    }

    fn emit(
        &mut self,
        whole: bool,
        time: SystemTime,
        emit: &mut dyn FnMut(&[u8], usize) -> bool,
    ) -> bool {
        self.record.clear();
        self.record.extend_from_slice(&timestamp(time));
        let tag: &[u8] = if whole { b" F " } else { b" P " };
        for part in [b" ", self.stream.as_bytes(), tag, &self.pending, b"\n"] {
            self.record.extend_from_slice(part);
        }
        let content = self.pending.len() + usize::from(whole);
        self.pending.clear();
        emit(&self.record, content)
    }
}

/// RFC 3339 in UTC with nanoseconds: always 30 characters until the year 9999.
fn timestamp(time: SystemTime) -> Vec<u8> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let (year, month, day) = civil(since.as_secs() / DAY);
    let second = since.as_secs() % DAY;
    let mut text = Vec::with_capacity(32);
    // Writing to a vector cannot fail.
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    );
    text
}

/// The Gregorian date of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, the leap day ends a year, and the months from
    // March on follow a pattern of 153 days for each five.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(secs: u64, nanos: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(secs, nanos)
    }

    fn records(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::new("stdout");
        let mut records = Vec::new();
        let mut emit = |record: &[u8], _: usize| {
            records.push(record.to_vec());
            true
        };
        for piece in pieces {
            splitter.push(piece, at(0, 0), &mut emit);
        }
        splitter.finish(at(0, 0), &mut emit);
        records
    }

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        for (secs, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (1_475_713_029, 669_794_202, "2016-10-06T00:17:09.669794202Z"),
            (1_709_251_199, 1, "2024-02-29T23:59:59.000000001Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
        ] {
            assert_eq!(timestamp(at(secs, nanos)), expected.as_bytes());
        }
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let got = records(&[b"one\ntw", b"o\n", b"\n"]);
        let expected: Vec<Vec<u8>> = ["one", "two", ""]
            .iter()
            .map(|line| format!("1970-01-01T00:00:00.000000000Z stdout F {line}\n").into_bytes())
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn last_line_without_line_feed_is_partial() {
        assert_eq!(
            records(&[b"prompt> "]),
            [b"1970-01-01T00:00:00.000000000Z stdout P prompt> \n"]
        );
    }

    #[test]
    fn long_line_is_split_and_one_that_just_fits_is_not() {
        let mut line = vec![b'x'; MAX_CONTENT];
        line.push(b'\n');
        assert_eq!(records(&[&line]).len(), 1);
        line.insert(0, b'x');
        let got = records(&[&line]);
        assert_eq!(got.len(), 2);
        assert!(got[0].starts_with(b"1970-01-01T00:00:00.000000000Z stdout P xx"));
        assert!(got[1].ends_with(b" stdout F x\n"));
    }

    #[test]
    fn refusal_stops_the_splitting() {
        let mut splitter = Splitter::new("stderr");
        let mut count = 0;
        let goes_on = splitter.push(b"a\nb\nc\n", at(0, 0), &mut |_, _| {
            count += 1;
            count < 2
        });
        assert!(!goes_on);
        assert_eq!(count, 2);
    }

    proptest! {
        #[test]
        fn bytes_come_back_exactly(
            pieces in prop::collection::vec(
                prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400), 0..12),
            long in 0usize..3 * MAX_CONTENT,
        ) {
            let mut pieces = pieces;
            pieces.insert(pieces.len() / 2, vec![b'l'; long]);
            let sent = pieces.concat();
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let mut back = Vec::new();
            for record in records(&slices) {
                let prefix = b"1970-01-01T00:00:00.000000000Z stdout ".len();
                let content = &record[prefix + 2..record.len() - 1];
                prop_assert!(content.len() <= MAX_CONTENT);
                prop_assert!(!content.contains(&b'\n'));
                back.extend_from_slice(content);
                if record[prefix] == b'F' {
                    back.push(b'\n');
                }
            }
            prop_assert_eq!(back, sent);
        }
    }
}
