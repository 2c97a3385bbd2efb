//! Sparse members: which stored bytes belong where.

use super::tar::decimal;

/// The most pieces one file may have; each takes memory before it is checked.
const MAX_SEGMENTS: usize = 1 << 18;

/// Why a sparse map is refused.
#[derive(Debug, thiserror::Error)]
pub enum SparseError {
    /// Not numbers, or an odd count of them.
    #[error("its map is malformed")]
    Map,
    /// More pieces than anybody needs.
    #[error("its map has more than {MAX_SEGMENTS} pieces")]
    TooMany,
    /// Pieces out of order, overlapping, or beyond the file's end.
    #[error("the pieces of its map overlap or exceed the file")]
    Order,
    /// The pieces do not add up to the bytes stored.
    #[error("its map needs {needed} bytes, {stored} are stored")]
    Stored {
        /// What the pieces add up to.
        needed: u64,
        /// What the archive holds.
        stored: u64,
    },
}

/// `len` bytes that are stored, at `offset` of the file; between are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

pub(super) fn check_count(segments: usize) -> Result<(), SparseError> {
    if segments > MAX_SEGMENTS {
        Err(SparseError::TooMany)
    } else {
        Ok(())
    }
}

/// Checks a map (offset, length, ...) of a file of `size` bytes, of which
/// `stored` are in the archive.
pub(super) fn segments(
    numbers: &[u64],
    size: u64,
    stored: u64,
) -> Result<Vec<Segment>, SparseError> {
    check_count(numbers.len() / 2)?;
    if !numbers.len().is_multiple_of(2) {
        return Err(SparseError::Map);
    }
    let mut end = 0_u64;
    let mut needed = 0_u64;
    let mut segments = Vec::with_capacity(numbers.len() / 2);
    for pair in numbers.chunks_exact(2) {
        let (offset, len) = (pair[0], pair[1]);
        let next_end = offset.checked_add(len).filter(|end| *end <= size);
        let next_end = next_end
            .filter(|_| offset >= end)
            .ok_or(SparseError::Order)?;
        // Cannot overflow: disjoint pieces within `size`.
        needed += len;
        end = next_end;
        segments.push(Segment { offset, len });
    }
    if needed != stored {
        return Err(SparseError::Stored { needed, stored });
    }
    Ok(segments)
}

/// Parses the map of PAX format 1.0, fed block by block: a count of pieces and
/// then their offsets and lengths, one number a line.
#[derive(Default)]
pub(super) struct MapParser {
    /// The line that the last block cut off.
    line: Vec<u8>,
    count: Option<usize>,
    numbers: Vec<u64>,
}

impl MapParser {
    /// Takes a block; says whether the map is complete (the rest is padding).
    pub(super) fn push(&mut self, block: &[u8]) -> Result<bool, SparseError> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err(SparseError::Map);
                }
                continue;
            }
            let number = decimal(&self.line).ok_or(SparseError::Map)?;
            self.line.clear();
            if self.count.is_none() {
                let count = usize::try_from(number).map_err(|_| SparseError::TooMany)?;
                check_count(count)?;
                self.count = Some(count);
            } else {
                self.numbers.push(number);
            }
            if self
                .count
                .is_some_and(|count| self.numbers.len() == count * 2)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn into_numbers(self) -> Vec<u64> {
        self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_in_order_is_accepted() {
        let found = segments(&[10, 5, 20, 0, 20, 7], 30, 12).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[2], Segment { offset: 20, len: 7 });
    }

    #[test]
    fn senseless_maps_are_refused() {
        let refused = |numbers: &[u64], size, stored| segments(numbers, size, stored).is_err();
        assert!(refused(&[1], 10, 0), "odd");
        assert!(refused(&[5, 2, 3, 1], 10, 3), "out of order");
        assert!(refused(&[0, 4, 3, 1], 10, 5), "overlapping");
        assert!(refused(&[0, 11], 10, 11), "beyond the end");
        assert!(refused(&[u64::MAX, 2], u64::MAX, 2), "overflow");
        assert!(refused(&[0, 4], 10, 5), "more stored");
        assert!(refused(&[0, 4], 10, 3), "less stored");
    }

    #[test]
    fn map_lines_may_cross_blocks() {
        let mut parser = MapParser::default();
        assert!(!parser.push(b"2\n0\n51").unwrap());
        assert!(parser.push(b"2\n10240\n512\n\0\0\0").unwrap());
        assert_eq!(parser.into_numbers(), [0, 512, 10240, 512]);
    }

    #[test]
    fn bad_map_lines_are_refused() {
        for map in [
            &b"x\n"[..],
            b"\n",
            b"1\n-1\n",
            b"999999999\n",
            b"111111111111111111111111",
        ] {
            assert!(
                MapParser::default().push(map).is_err(),
                "{}",
                map.escape_ascii()
            );
        }
        assert!(MapParser::default().push(b"0\n").unwrap());
    }
}
