//! PAX extended headers: lines of `LENGTH KEY=VALUE\n`.

use super::TarError;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header, in their order.
#[derive(Default)]
pub(super) struct Records {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What the `GNU.sparse` records say.
pub(super) struct SparseMap {
    /// The member's true name, if it is given here.
    pub(super) name: Option<Vec<u8>>,
    /// The file's true size.
    pub(super) size: u64,
    /// Offset, length, ...; `None` if the map stands before the data.
    pub(super) numbers: Option<Vec<u64>>,
}

impl Records {
    /// Parses a whole header; `None` if it breaks the grammar.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let len = usize::try_from(decimal(&bytes[..space])?).ok()?;
            let (record, rest) = bytes.split_at_checked(len)?;
            let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return None;
            }
            records.push((key.to_vec(), value.to_vec()));
            bytes = rest;
        }
        Some(Self { records })
    }

    /// The last value of that key; an empty one means the header's own field.
    fn value(&self, key: &str) -> Option<&[u8]> {
        let found = self
            .records
            .iter()
            .rev()
            .find(|(name, _)| name == key.as_bytes());
        found
            .map(|(_, value)| value.as_slice())
            .filter(|value| !value.is_empty())
    }

    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.value(key).map(<[u8]>::to_vec)
    }

    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, TarError> {
        self.value(key)
            .map(|value| decimal(value).ok_or(TarError::Number { field: key }))
            .transpose()
    }

    /// Seconds, with a fraction down to nanoseconds.
    pub(super) fn time(&self, key: &'static str) -> Result<Option<(i64, u32)>, TarError> {
        self.value(key)
            .map(|value| time(value).ok_or(TarError::Number { field: key }))
            .transpose()
    }

    /// Extended attributes: names with their namespace, and values.
    pub(super) fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let xattr = |(key, value): &(Vec<u8>, Vec<u8>)| {
            key.strip_prefix(XATTR_PREFIX)
                .map(|name| (name.to_vec(), value.clone()))
        };
        self.records.iter().filter_map(xattr).collect()
    }

    /// The sparse map of format 0.0, 0.1 or 1.0, if this is a sparse member.
    pub(super) fn sparse(&self) -> Result<Option<SparseMap>, TarError> {
        let version = (
            self.value("GNU.sparse.major"),
            self.value("GNU.sparse.minor"),
        );
        let numbers = match version {
            (Some(b"1"), Some(b"0")) => None,
            (None | Some(b"0"), None | Some(b"0" | b"1")) => match self.sparse_numbers()? {
                Some(numbers) => Some(numbers),
                None => return Ok(None),
            },
            _ => {
                return Err(TarError::Number {
                    field: "GNU.sparse version",
                });
            }
        };
        let size = match self.number("GNU.sparse.realsize")? {
            Some(size) => size,
            None => self.number("GNU.sparse.size")?.ok_or(TarError::Number {
                field: "GNU.sparse.size",
            })?,
        };
        Ok(Some(SparseMap {
            name: self.get("GNU.sparse.name"),
            size,
            numbers,
        }))
    }

    fn sparse_numbers(&self) -> Result<Option<Vec<u64>>, TarError> {
        const FIELD: &str = "GNU.sparse.map";
        let parse = |value: &[u8]| decimal(value).ok_or(TarError::Number { field: FIELD });
        if let Some(map) = self.value(FIELD) {
            return map
                .split(|byte| *byte == b',')
                .map(parse)
                .collect::<Result<_, _>>()
                .map(Some);
        }
        if self.value("GNU.sparse.numblocks").is_none() {
            return Ok(None);
        }
        self.records
            .iter()
            .filter(|(key, _)| matches!(&**key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes"))
            .map(|(_, value)| parse(value))
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

/// A number of decimal digits only.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(b"");
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction
        .iter()
        .copied()
        .chain(std::iter::repeat(b'0'))
        .take(9);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record with its length in front, which counts itself.
    fn record(key: &str, value: &str) -> String {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len += 1;
        }
        format!("{len} {key}={value}\n")
    }

    #[test]
    fn records_are_parsed_with_newlines_and_equals_signs_in_values() {
        let text = record("path", "a=b\nc/d.txt") + &record("SCHILY.xattr.user.k", "v\0\n");
        let records = Records::parse(text.as_bytes()).unwrap();
        assert_eq!(records.get("path").unwrap(), b"a=b\nc/d.txt");
        assert_eq!(records.xattrs(), [(b"user.k".to_vec(), b"v\0\n".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"5 a="[..],
            b"6 a=b\nx",
            b"99 a=b\n",
            b"3 a\n",
            b"x a=b\n",
            b" 6 a=b\n",
            b"5 =b\n",
            b"18446744073709551616 a=b\n",
            b"0 ",
            b"1 a=b\n",
        ] {
            assert!(Records::parse(bytes).is_none(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn last_value_counts_and_an_empty_one_unsets() {
        let text =
            record("path", "a") + &record("path", "b") + &record("size", "7") + &record("size", "");
        let records = Records::parse(text.as_bytes()).unwrap();
        assert_eq!(records.get("path").unwrap(), b"b");
        assert_eq!(records.number("size").unwrap(), None);
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        for bad in [
            &b""[..],
            b"-",
            b".5",
            b"1.x",
            b"1e3",
            b"99999999999999999999",
        ] {
            assert_eq!(time(bad), None, "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn parse_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(records) = Records::parse(&bytes) {
                let _ = (records.sparse().is_ok(), records.time("mtime").is_ok());
            }
        }
    }
}
