//! Pauses between restarts, as the kubelet makes them: none before the first, then
//! doubling from a base to a bound, forgotten after a long enough run.

use std::time::Duration;

/// How pauses grow. The default is the kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Pause before the second restart; the first is at once.
    pub base: Duration,
    /// Longest pause.
    pub max: Duration,
    /// A run this long counts as healthy: what follows is a first restart again.
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
    /// What follows a run of `ran`: the pause before the restart and the one to be
    /// made before the next, in milliseconds. `due_ms` is what this gave as the
    /// next one the last time, 0 if there was none.
    pub(crate) fn restart_ms(&self, due_ms: u64, ran: Duration) -> (u64, u64) {
        let pause = if ran >= self.reset_after { 0 } else { due_ms };
        (pause, self.longer_ms(pause))
    }

    /// The pause in milliseconds that follows one of `last_ms` (0: none yet).
    pub(crate) fn longer_ms(&self, last_ms: u64) -> u64 {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        last_ms
            .saturating_mul(2)
            .max(millis(self.base))
            .min(millis(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_restart_is_at_once_then_pauses_double_to_the_bound() {
        let backoff = Backoff::default();
        let (mut due, mut seen) = (0, Vec::new());
        for _ in 0..8 {
            let (pause, next) = backoff.restart_ms(due, Duration::from_secs(1));
            due = next;
            seen.push(pause / 1000);
        }
        assert_eq!(seen, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn long_run_makes_the_next_restart_a_first_one() {
        let backoff = Backoff::default();
        let almost = backoff.restart_ms(80_000, Duration::from_secs(599));
        assert_eq!(almost, (80_000, 160_000));
        let healthy = backoff.restart_ms(80_000, Duration::from_secs(600));
        assert_eq!(healthy, (0, 10_000));
    }
}
