//! Tables, JSON, and times as people say them.

use comfy_table::{Table, presets};
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Prints a line. Not `println!`, which panics where the reader has gone away
/// (`spherule ps | head -1`).
pub(crate) fn print(line: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// The reader of our output has gone away: it wants no more, and no complaint.
pub(crate) fn is_unread(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe && e.raw_os_error().is_some())
}

/// Prints rows under headings, columns aligned, without lines.
pub(crate) fn print_table(headings: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(headings.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    print(table.trim_fmt())
}

/// Prints one JSON value, indented.
pub(crate) fn print_json(value: &serde_json::Value) -> io::Result<()> {
    print(format_args!("{value:#}"))
}

/// How long ago a time (nanoseconds since the epoch) was; `-` for 0.
pub(crate) fn age(ns: i64) -> String {
    let Ok(ns) = u64::try_from(ns) else {
        return "-".into();
    };
    if ns == 0 {
        return "-".into();
    }
    let then = UNIX_EPOCH + Duration::from_nanos(ns);
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    format!("{} ago", indicatif::HumanDuration(age))
}

/// A duration in nanoseconds as milliseconds or seconds.
pub(crate) fn duration(ns: i64) -> String {
    let ns = Duration::from_nanos(ns.max(0).unsigned_abs());
    if ns < Duration::from_secs(10) {
        format!("{:.1} ms", ns.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", ns.as_secs_f64())
    }
}

/// A generated enum name without its prefix: `PHASE_RUNNING` is `Running`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    let word = name.strip_prefix(prefix).unwrap_or(name).to_lowercase();
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lose_their_prefix_and_their_shouting() {
        assert_eq!(word("PHASE_RUNNING", "PHASE_"), "Running");
        assert_eq!(word("STATE_TERMINATED", "STATE_"), "Terminated");
    }

    #[test]
    fn unknown_times_have_no_age() {
        assert_eq!(age(0), "-");
        assert_eq!(age(-5), "-");
    }

    #[test]
    fn durations_are_short_to_read() {
        assert_eq!(duration(1_500_000), "1.5 ms");
        assert_eq!(duration(12_300_000_000), "12.3 s");
    }
}
