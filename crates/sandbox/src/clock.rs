//! Time as the records have it, and the stages measured by it.

use crate::record::Stage;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Measures one stage.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    started_at_ns: i64,
    started: Instant,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            started_at_ns: now_ns(),
            started: Instant::now(),
        }
    }

    /// The stage from the start until now.
    pub(crate) fn stage(&self, name: &str) -> Stage {
        let elapsed = self.started.elapsed().as_nanos();
        self.stage_of(name, 0, i64::try_from(elapsed).unwrap_or(i64::MAX))
    }

    /// A stage whose length was measured elsewhere, `after_ns` after the start.
    pub(crate) fn stage_of(&self, name: &str, after_ns: i64, duration_ns: i64) -> Stage {
        Stage {
            name: name.to_owned(),
            started_at_ns: self.started_at_ns.saturating_add(after_ns),
            duration_ns,
        }
    }
}

/// A count of nanoseconds from elsewhere, bounded.
pub(crate) fn nanos(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
