//! Container logs as spherule-vmm writes them: the CRI log format, one record a
//! line, `2016-10-06T00:17:09.669794202Z stdout F the text`. The text is the
//! container's own bytes; `P` marks a piece whose line goes on in the next record.

use std::time::UNIX_EPOCH;

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Nanoseconds since the epoch.
    pub(crate) time_ns: i64,
    /// Of stderr; otherwise of stdout.
    pub(crate) stderr: bool,
    /// What the container wrote, its line end included where it wrote one.
    pub(crate) data: Vec<u8>,
}

/// Cuts a log that is still being written into records.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// Bytes after the last whole line.
    rest: Vec<u8>,
}

impl Parser {
    /// Adds bytes as they stand in the file; returns the records they complete. A
    /// line that is no record is passed over.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Record> {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else {
            return Vec::new();
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        whole
            .split_inclusive(|b| *b == b'\n')
            .filter_map(parse_line)
            .collect()
    }
}

/// How a record ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With its line.
    Line,
    /// The line goes on in the next record of the stream.
    Piece,
}

/// How this line of a log ends; `None` of one that is no record.
pub(crate) fn end(line: &[u8]) -> Option<End> {
    let mut parts = line.splitn(4, |b| *b == b' ').skip(1);
    if !matches!(parts.next()?, b"stdout" | b"stderr") {
        return None;
    }
    // A tag may hold more after a colon (CRI: `P:more`).
    match parts.next()?.first()? {
        b'F' => Some(End::Line),
        b'P' => Some(End::Piece),
        _ => None,
    }
}

fn parse_line(line: &[u8]) -> Option<Record> {
    let end = end(line)?;
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let time = humantime::parse_rfc3339(time)
        .ok()?
        .duration_since(UNIX_EPOCH)
        .ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let text = parts.nth(1)?;
    let data = match end {
        End::Line => text,
        End::Piece => text.strip_suffix(b"\n")?,
    };
    Some(Record {
        time_ns: i64::try_from(time.as_nanos()).ok()?,
        stderr,
        data: data.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &[u8] = b"2016-10-06T00:17:09.669794202Z stdout F whole line\n\
        2016-10-06T00:17:10.000000001Z stderr P half \n\
        2016-10-06T00:17:10.000000002Z stderr F a  line\n";

    #[test]
    fn records_keep_bytes_streams_and_times() {
        let records = Parser::default().push(LOG);
        assert_eq!(records.len(), 3);
        assert_eq!(records[0].time_ns, 1_475_713_029_669_794_202);
        assert_eq!(records[0].data, b"whole line\n");
        assert!(!records[0].stderr && records[1].stderr);
        let joined = [&records[1].data[..], &records[2].data[..]].concat();
        assert_eq!(joined, b"half a  line\n");
    }

    proptest! {
        #[test]
        fn records_are_the_same_however_the_file_is_read(cut in 0..LOG.len()) {
            let mut parser = Parser::default();
            let mut records = parser.push(&LOG[..cut]);
            records.extend(parser.push(&LOG[cut..]));
            prop_assert_eq!(records, Parser::default().push(LOG));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            Parser::default().push(&bytes);
        }
    }
}
