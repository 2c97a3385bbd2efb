//! Pauses between restarts: doubling from a base to a bound, forgotten after a
//! long enough run.

use std::time::Duration;

/// How pauses grow. The default is the kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// First pause.
    pub base: Duration,
    /// Longest pause.
    pub max: Duration,
    /// A run this long counts as healthy: the next pause is the first again.
    pub reset_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(10),
            max: Duration::from_secs(300),
            reset_after: Duration::from_secs(600),
        }
    }
}

impl Backoff {
    /// The pause in milliseconds after the pause `last_ms` (0: none yet) and a
    /// run of `ran`.
    pub(crate) fn next_ms(&self, last_ms: u64, ran: Duration) -> u64 {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        if last_ms == 0 || ran >= self.reset_after {
            return millis(self.base);
        }
        last_ms
            .saturating_mul(2)
            .min(millis(self.max))
            .max(millis(self.base).min(millis(self.max)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_bound_and_start_again_after_a_long_run() {
        let backoff = Backoff::default();
        let mut pause = 0;
        let mut seen = Vec::new();
        for _ in 0..7 {
            pause = backoff.next_ms(pause, Duration::from_secs(1));
            seen.push(pause / 1000);
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.next_ms(pause, Duration::from_secs(601)), 10_000);
    }
}
