//! The 512 bytes of a header.
//!
//! | bytes    | field | bytes    | field (ustar) | bytes    | field (GNU)      |
//! |----------|-------|----------|---------------|----------|------------------|
//! | 0..100   | name  | 257..263 | magic         | 386..482 | 4 sparse entries |
//! | 100..108 | mode  | 329..337 | device major  | 482      | more follow      |
//! | 108..124 | uid, gid | 337..345 | device minor | 483..495 | real size      |
//! | 124..136 | size  | 345..500 | name's prefix |          |                  |
//! | 136..148 | mtime |          |               |          |                  |
//! | 148..156 | checksum |       |               |          |                  |
//! | 156      | type  |          |               |          |                  |
//! | 157..257 | link  |          |               |          |                  |

use std::ops::Range;

use super::{BLOCK, TarError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    /// Ustar with a shorter prefix, by Jörg Schilling's `star`.
    Star,
    Gnu,
}

pub(super) struct RawHeader<'a> {
    block: &'a [u8; BLOCK],
    format: Format,
}

impl<'a> RawHeader<'a> {
    /// Checks the checksum and finds out the format.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, TarError> {
        let stored = number(&block[148..156], "checksum")?;
        let sum = |value: fn(u8) -> i64| -> i64 {
            let spaces = 8 * i64::from(b' ');
            block[..148]
                .iter()
                .chain(&block[156..])
                .map(|byte| value(*byte))
                .sum::<i64>()
                + spaces
        };
        // Some old programs added up signed characters.
        if sum(i64::from) != stored && sum(|byte| i64::from(byte.cast_signed())) != stored {
            return Err(TarError::Checksum);
        }
        let format = match &block[257..265] {
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if block[508..512] == *b"tar\0" => Format::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        };
        Ok(Self { block, format })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// The name with its prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = match self.format {
            Format::Ustar => self.text(345..500),
            Format::Star => self.text(345..476),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> &[u8] {
        self.text(157..257)
    }

    pub(super) fn mode(&self) -> Result<u32, TarError> {
        let mode = self.positive(100..108, "mode")?;
        u32::try_from(mode).map_err(|_| TarError::Number { field: "mode" })
    }

    pub(super) fn uid(&self) -> Result<u64, TarError> {
        self.positive(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, TarError> {
        self.positive(116..124, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.positive(124..136, "size")
    }

    /// Seconds since 1970.
    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        number(&self.block[136..148], "mtime")
    }

    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        if self.format == Format::V7 {
            return Ok((0, 0));
        }
        let part = |range, field| {
            let part = self.positive(range, field)?;
            u32::try_from(part).map_err(|_| TarError::Number { field })
        };
        Ok((
            part(329..337, "device major")?,
            part(337..345, "device minor")?,
        ))
    }

    /// The sparse map of the GNU format: offset, length, offset, length, ...
    pub(super) fn sparse_numbers(&self) -> Result<Vec<u64>, TarError> {
        let mut numbers = Vec::new();
        append_sparse_entries(&self.block[386..482], &mut numbers)?;
        Ok(numbers)
    }

    pub(super) fn sparse_is_extended(&self) -> bool {
        self.block[482] != 0
    }

    pub(super) fn sparse_size(&self) -> Result<u64, TarError> {
        self.positive(483..495, "real size")
    }

    fn text(&self, range: Range<usize>) -> &'a [u8] {
        let field = &self.block[range];
        let end = field
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(field.len());
        &field[..end]
    }

    fn positive(&self, range: Range<usize>, field: &'static str) -> Result<u64, TarError> {
        u64::try_from(number(&self.block[range], field)?).map_err(|_| TarError::Number { field })
    }
}

/// Adds the entries of an extension block; says whether another one follows.
pub(super) fn append_extended_sparse(
    block: &[u8; BLOCK],
    numbers: &mut Vec<u64>,
) -> Result<bool, TarError> {
    append_sparse_entries(&block[..504], numbers)?;
    Ok(block[504] != 0)
}

fn append_sparse_entries(bytes: &[u8], numbers: &mut Vec<u64>) -> Result<(), TarError> {
    for entry in bytes.chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        for part in entry.chunks_exact(12) {
            let value = number(part, "sparse map")?;
            numbers.push(u64::try_from(value).map_err(|_| TarError::Number {
                field: "sparse map",
            })?);
        }
    }
    Ok(())
}

/// A numeric field: octal digits between spaces and zero bytes, or base 256
/// where the first bit is set.
fn number(field: &[u8], name: &'static str) -> Result<i64, TarError> {
    let bad = || TarError::Number { field: name };
    if let Some(first @ 0x80..) = field.first().copied() {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            // The marker bit is no part of the number but for its sign.
            let byte = if index == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            let shifted = value.checked_mul(256).ok_or_else(bad)?;
            value = shifted.checked_add(i64::from(byte)).ok_or_else(bad)?;
        }
        return Ok(value);
    }
    let is_filler = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !is_filler(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_filler).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, byte| {
        let digit = matches!(byte, b'0'..=b'7')
            .then(|| i64::from(byte - b'0'))
            .ok_or_else(bad)?;
        value
            .checked_mul(8)
            .and_then(|value| value.checked_add(digit))
            .ok_or_else(bad)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(field: &[u8]) -> Option<i64> {
        number(field, "test").ok()
    }

    #[test]
    fn octal_numbers_may_be_padded_with_spaces_and_zeros() {
        for field in [
            &b"0000644\0"[..],
            b"   644 \0",
            b"644\0\0\0\0\0",
            b"00000644",
            b"644 \0xx ",
        ] {
            assert_eq!(parse(field), Some(0o644), "{field:?}");
        }
        assert_eq!(parse(b"\0\0\0\0"), Some(0));
        assert_eq!(parse(b"        "), Some(0));
    }

    #[test]
    fn bad_octal_numbers_are_refused() {
        for field in [
            &b"-1"[..],
            b"8",
            b"0x10",
            b"1_0",
            b"7777777777777777777777777",
        ] {
            assert_eq!(parse(field), None, "{field:?}");
        }
    }

    #[test]
    fn base_256_covers_large_and_negative_numbers() {
        assert_eq!(parse(b"\x80\0\0\0\0\0\x2d\xc6\xc0"), Some(3_000_000));
        assert_eq!(
            parse(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Some(-1)
        );
        assert_eq!(
            parse(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x38"),
            Some(-200)
        );
        assert_eq!(
            parse(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
            Some(i64::MAX)
        );
        assert_eq!(parse(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
        assert_eq!(
            parse(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            None
        );
        assert_eq!(
            parse(b"\xc0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            None
        );
    }
}
