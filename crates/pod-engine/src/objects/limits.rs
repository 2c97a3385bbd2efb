//! How much I/O a PersistentVolume may do, by annotations of its own, so that it is
//! the node's administrator who says it.

use quantity::Quantity;
use sandbox::{IoLimits, RateLimit};
use std::collections::BTreeMap;

/// The rate, and the burst; the latter is a second's worth unless it is given.
const BYTES: (&str, &str) = ("spherule.dev/bytes-per-second", "spherule.dev/bytes-burst");
const OPERATIONS: (&str, &str) = (
    "spherule.dev/operations-per-second",
    "spherule.dev/operations-burst",
);

/// The limits, or the annotation that is none and why.
pub(crate) fn io_limits(
    annotations: &BTreeMap<String, String>,
) -> Result<IoLimits, (String, String)> {
    let number = |name: &str| {
        let Some(text) = annotations.get(name) else {
            return Ok(None);
        };
        let wrong = |message: &str| {
            let field = format!("metadata.annotations[{name}]");
            Err((field, format!("{text:?}: {message}")))
        };
        match text.parse::<Quantity>() {
            Ok(amount) if !amount.is_negative() && amount.ceil() > 0 => Ok(Some(amount.ceil())),
            _ => wrong("must be a quantity of at least 1, as 10Mi"),
        }
    };
    let rate = |(per_second, burst): (&str, &str)| {
        let limit = match (number(per_second)?, number(burst)?) {
            (Some(per_second), burst) => Some(RateLimit {
                per_second,
                burst: burst.unwrap_or(per_second),
            }),
            (None, None) => None,
            (None, Some(_)) => {
                let field = format!("metadata.annotations[{burst}]");
                return Err((field, format!("needs {per_second}")));
            }
        };
        Ok(limit)
    };
    Ok(IoLimits {
        bytes: rate(BYTES)?,
        operations: rate(OPERATIONS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(pairs: &[(&str, &str)]) -> Result<IoLimits, (String, String)> {
        let pairs = pairs.iter();
        io_limits(
            &pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn limits_are_quantities_and_a_burst_needs_a_rate() {
        assert_eq!(limits(&[("other", "x")]), Ok(IoLimits::default()));
        let got = limits(&[
            ("spherule.dev/bytes-per-second", "10Mi"),
            ("spherule.dev/operations-per-second", "100"),
            ("spherule.dev/operations-burst", "1k"),
        ]);
        let rate = |per_second, burst| Some(RateLimit { per_second, burst });
        let want = IoLimits {
            bytes: rate(10 << 20, 10 << 20),
            operations: rate(100, 1000),
        };
        assert_eq!(got, Ok(want));
        for (name, value) in [
            ("spherule.dev/bytes-per-second", "0"),
            ("spherule.dev/bytes-per-second", "-1"),
            ("spherule.dev/operations-per-second", "fast"),
            ("spherule.dev/operations-burst", "5"),
        ] {
            let (field, _) = limits(&[(name, value)]).unwrap_err();
            assert_eq!(field, format!("metadata.annotations[{name}]"));
        }
    }
}
