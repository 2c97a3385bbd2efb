//! How much I/O an extent may do: a token bucket of bytes and one of operations.
//!
//! A request may begin while both buckets hold something, and then takes its whole
//! cost, if need be as a debt that must be filled up first. So a request larger
//! than a burst is served, too, and over any time `t` no more than `rate * t +
//! burst` and one request goes through. Time is the caller's.

use std::num::NonZeroU64;
use std::time::Duration;

/// Nano-tokens in a token: a rate a second fills so many a nanosecond.
const NANO: i128 = 1_000_000_000;

/// A rate and how much may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second.
    pub per_second: NonZeroU64,
    /// Units.
    pub burst: NonZeroU64,
}

/// What an extent may do; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoLimits {
    /// Bytes read, written and zeroed.
    pub bytes: Option<Rate>,
    /// Requests, but for flushes.
    pub operations: Option<Rate>,
}

/// What a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) bytes: u64,
    pub(super) operations: u64,
}

/// The buckets of an extent.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// Full buckets at the time `now`.
    pub(super) fn new(limits: IoLimits, now: Duration) -> Self {
        Limiter {
            bytes: limits.bytes.map(|rate| Bucket::new(rate, now)),
            operations: limits.operations.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// How long a request has to wait from `now` on; zero: not at all.
    pub(super) fn wait(&mut self, now: Duration) -> Duration {
        let buckets = [&mut self.bytes, &mut self.operations];
        let waits = buckets.into_iter().flatten().map(|b| b.wait(now));
        waits.max().unwrap_or_default()
    }

    /// Takes a request's cost, which a bucket may not hold.
    pub(super) fn charge(&mut self, cost: Cost) {
        for (bucket, units) in [
            (&mut self.bytes, cost.bytes),
            (&mut self.operations, cost.operations),
        ] {
            if let Some(bucket) = bucket {
                bucket.level -= i128::from(units) * NANO;
            }
        }
    }
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Nano-tokens; below zero is a debt.
    level: i128,
    /// Up to when it has been filled.
    filled: Duration,
}

impl Bucket {
    fn new(rate: Rate, now: Duration) -> Self {
        Bucket {
            rate,
            level: i128::from(rate.burst.get()) * NANO,
            filled: now,
        }
    }

    fn wait(&mut self, now: Duration) -> Duration {
        let rate = i128::from(self.rate.per_second.get());
        let full = i128::from(self.rate.burst.get()) * NANO;
        // At most 2^64 tokens a second for 2^94 nanoseconds: the sum may stop at
        // the largest number, which is more than full.
        let elapsed = now.saturating_sub(self.filled).as_nanos();
        let fresh = i128::try_from(elapsed)
            .unwrap_or(i128::MAX)
            .saturating_mul(rate);
        self.level = self.level.saturating_add(fresh).min(full);
        self.filled = self.filled.max(now);
        if self.level > 0 {
            return Duration::ZERO;
        }
        let missing = 1 - self.level;
        let nanos = (missing + rate - 1) / rate;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        let number = |n| NonZeroU64::new(n).expect("not zero");
        Rate {
            per_second: number(per_second),
            burst: number(burst),
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let limits = IoLimits {
            operations: Some(rate(10, 5)),
            bytes: None,
        };
        let mut limiter = Limiter::new(limits, Duration::ZERO);
        let one = Cost {
            bytes: 1 << 40,
            operations: 1,
        };
        for _ in 0..5 {
            assert_eq!(limiter.wait(Duration::ZERO), Duration::ZERO);
            limiter.charge(one);
        }
        // A moment more than nothing must be in it.
        let wait = limiter.wait(Duration::ZERO);
        assert!(wait > Duration::ZERO && wait <= SECOND / 10, "{wait:?}");
        assert_eq!(limiter.wait(wait), Duration::ZERO);
        // A pause fills it no further than the burst.
        let later = SECOND * 1000;
        let mut done = 0;
        while limiter.wait(later) == Duration::ZERO {
            limiter.charge(one);
            done += 1;
        }
        assert_eq!(done, 5);
    }

    #[test]
    fn a_request_larger_than_the_burst_goes_and_is_paid_for_later() {
        let limits = IoLimits {
            bytes: Some(rate(1000, 10)),
            operations: None,
        };
        let mut limiter = Limiter::new(limits, SECOND);
        assert_eq!(limiter.wait(SECOND), Duration::ZERO);
        limiter.charge(Cost {
            bytes: 2010,
            operations: 1,
        });
        let wait = limiter.wait(SECOND);
        assert!(
            wait > SECOND * 2 && wait < SECOND * 2 + SECOND / 1000,
            "{wait:?}"
        );
        // A clock that stands still or goes back fills nothing.
        assert_eq!(limiter.wait(Duration::ZERO), wait);
    }

    #[test]
    fn extreme_rates_neither_overflow_nor_stand_still() {
        let limits = IoLimits {
            bytes: Some(rate(u64::MAX, u64::MAX)),
            operations: Some(rate(1, 1)),
        };
        let mut limiter = Limiter::new(limits, Duration::ZERO);
        limiter.charge(Cost {
            bytes: u64::MAX,
            operations: u64::MAX,
        });
        let wait = limiter.wait(Duration::MAX);
        assert_eq!(wait, Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_more_goes_through_than_rate_burst_and_one_request(
            per_second in 1..1_000_000u64,
            burst in 1..1_000_000u64,
            steps in prop::collection::vec((0..2_000_000_000u64, 1..500_000u64), 1..50),
        ) {
            let limits = IoLimits { bytes: Some(rate(per_second, burst)), operations: None };
            let mut limiter = Limiter::new(limits, Duration::ZERO);
            let (mut now, mut through, mut largest) = (Duration::ZERO, 0u128, 0u128);
            for (pause, bytes) in steps {
                now += Duration::from_nanos(pause);
                let wait = limiter.wait(now);
                // What it says is enough.
                prop_assert_eq!(limiter.wait(now + wait), Duration::ZERO);
                now += wait;
                limiter.charge(Cost { bytes, operations: 1 });
                through += u128::from(bytes);
                largest = largest.max(bytes.into());
                let allowed = u128::from(per_second) * now.as_nanos() / 1_000_000_000
                    + u128::from(burst) + largest;
                prop_assert!(through <= allowed, "{through} > {allowed}");
            }
        }
    }
}
