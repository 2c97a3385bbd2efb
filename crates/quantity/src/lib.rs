//! Kubernetes' resource quantities: `500m`, `1.5`, `64Mi`, `1e3`, `2k`.
//!
//! The grammar is that of `k8s.io/apimachinery/pkg/api/resource`: a signed
//! decimal number and a suffix of powers of two (Ki to Ei), of ten (n, u, m, k to
//! E) or a decimal exponent (e3, E-3). Values are kept exactly, in billionths.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// Longest text that is looked at.
const MAX_LEN: usize = 64;

/// An amount, exact to a billionth; smaller fractions are rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Quantity {
    nanos: i128,
}

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the grammar.
    #[error("{0:?} is no quantity; write for example 500m, 1.5, 64Mi or 2G")]
    Syntax(String),
    /// Larger than 2^63.
    #[error("{0:?} is too large for a quantity")]
    Range(String),
}

impl Quantity {
    /// The amount rounded up to a whole number; negative amounts are 0.
    pub fn ceil(self) -> u64 {
        u64::try_from((self.nanos + NANO - 1).div_euclid(NANO)).unwrap_or(0)
    }

    /// The amount in thousandths, rounded up; negative amounts are 0.
    pub fn milli(self) -> u64 {
        let milli = NANO / 1000;
        u64::try_from((self.nanos + milli - 1).div_euclid(milli)).unwrap_or(0)
    }

    /// A whole number.
    pub fn whole(number: u64) -> Self {
        Self {
            nanos: i128::from(number) * NANO,
        }
    }

    /// How often `divisor` fits in, rounded up; a divisor of 0 or less is 1.
    pub fn div_ceil(self, divisor: Self) -> u64 {
        let divisor = if divisor.nanos > 0 {
            divisor.nanos
        } else {
            NANO
        };
        let times = (self.nanos + divisor - 1).div_euclid(divisor);
        u64::try_from(times).unwrap_or(0)
    }

    /// Less than nothing.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }
}

/// What a suffix multiplies by, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let scale = match suffix {
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => return exponent(suffix),
    };
    Some(scale)
}

/// `e3`, `E-6`.
fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let exponent: i32 = digits.parse().ok()?;
    let power = 10i128.checked_pow(exponent.unsigned_abs())?;
    (power <= NANO * NANO).then_some(if exponent < 0 { (1, power) } else { (power, 1) })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let shown = || text.chars().take(MAX_LEN).collect::<String>();
        let syntax = || QuantityError::Syntax(shown());
        if text.len() > MAX_LEN {
            return Err(syntax());
        }
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(syntax());
        }
        let (times, over) = scale(suffix).ok_or_else(syntax)?;
        let range = || QuantityError::Range(shown());
        // Digits beyond what a billionth of an exa can show only round up.
        let kept = &fraction[..fraction.len().min(18)];
        let lost = fraction[kept.len()..].bytes().any(|b| b != b'0');
        let digits: i128 = format!("0{whole}{kept}").parse().map_err(|_| range())?;
        let places = u32::try_from(kept.len()).map_err(|_| range())?;
        let over = 10i128
            .checked_pow(places)
            .and_then(|p| p.checked_mul(over))
            .ok_or_else(range)?;
        // times * NANO / over, shortened first so that it stays within 128 bits.
        let (times, over) = shorten(times * NANO, over);
        let product = digits.checked_mul(times).ok_or_else(range)?;
        let mut nanos = product.div_euclid(over);
        if product.rem_euclid(over) != 0 || lost {
            nanos += 1;
        }
        if nanos > i128::from(i64::MAX) * NANO {
            return Err(range());
        }
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
        })
    }
}

/// Divides both by their greatest common divisor.
fn shorten(a: i128, b: i128) -> (i128, i128) {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x, b / x)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.unsigned_abs();
        let one = NANO.unsigned_abs();
        for (suffix, size) in [("Gi", 1u128 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
            if nanos != 0 && nanos.is_multiple_of(one * size) {
                return write!(f, "{sign}{}{suffix}", nanos / one / size);
            }
        }
        for (suffix, parts) in [("", 1u128), ("m", 1_000), ("u", 1_000_000)] {
            if nanos.is_multiple_of(one / parts) {
                return write!(f, "{sign}{}{suffix}", nanos / (one / parts));
            }
        }
        write!(f, "{sign}{nanos}n")
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 500m, 1.5, 64Mi or 2G")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_of_suffix_counts() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1000),
            ("500m", 500),
            ("0.5", 500),
            (".5", 500),
            ("2.", 2000),
            ("+1", 1000),
            ("100u", 1),
            ("1n", 1),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("25e-1", 2500),
            ("1P", 1_000_000_000_000_000_000),
        ] {
            assert_eq!(parse(text).milli(), milli, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", "-", "1.2.3", "Mi", "1 Gi", "1gi", "1mm", "e3", "1e", "0x10", "1e99", "NaN", "ä",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        assert!(matches!(
            "9Ei".parse::<Quantity>(),
            Err(QuantityError::Range(_))
        ));
    }

    #[test]
    fn fractions_round_up() {
        assert_eq!(parse("1.1").ceil(), 2);
        assert_eq!(parse("100.1m").milli(), 101);
        assert_eq!(parse("-5").ceil(), 0);
        assert!(parse("-5").is_negative());
    }

    proptest! {
        #[test]
        fn whole_numbers_and_their_text_agree(number in 0u64..i64::MAX.unsigned_abs()) {
            prop_assert_eq!(parse(&number.to_string()).ceil(), number);
        }

        #[test]
        fn shown_quantities_parse_to_themselves(milli in 0u64..u64::MAX / 4096) {
            let quantity = parse(&format!("{milli}m"));
            prop_assert_eq!(parse(&quantity.to_string()), quantity);
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn no_likely_text_panics(text in "[-+]?[0-9]{0,40}\\.?[0-9]{0,40}[eEKMGTPnumki]{0,2}[-+]?[0-9]{0,12}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
