//! Keeps a guest's clock with the host's. It was set at the boot; the host's is
//! corrected after that (NTP), and a VM that was paused has lost time.

use crate::clock::now_ns;
use crate::error::SandboxError;
use crate::live::Live;
use crate::registry::Entry;
use crate::{Inner, clock};
use guest_api::proto::{AdjustClockRequest, client_message::Call, response};
use std::time::{Duration, Instant};

/// Less than this is not worth a correction.
const PRECISION: Duration = Duration::from_millis(1);

/// Looks at the clock now and then; ends only by being dropped.
pub(crate) async fn keep(inner: &Inner, entry: &Entry, live: &Live) {
    loop {
        tokio::time::sleep(inner.config.clock_check).await;
        match check(inner, live).await {
            Ok(0) => {}
            Ok(by_ns) => tracing::debug!(sandbox = entry.id, by_ns, "moved the guest's clock"),
            Err(error) => {
                tracing::debug!(sandbox = entry.id, %error, "the guest's clock was not checked");
            }
        }
    }
}

/// Measures how late the guest's clock is and corrects it; nanoseconds that it was
/// moved by.
async fn check(inner: &Inner, live: &Live) -> Result<i64, SandboxError> {
    let (sent_at_ns, sent) = (now_ns(), Instant::now());
    let guest_ns = adjust(inner, live, 0).await?;
    let by_ns = correction(sent_at_ns, sent.elapsed(), guest_ns);
    if by_ns != 0 {
        adjust(inner, live, by_ns).await?;
    }
    Ok(by_ns)
}

/// What to move a clock by that showed `guest_ns` at some moment of a round trip.
/// 0 where the trip took too long to tell.
fn correction(sent_at_ns: i64, round_trip: Duration, guest_ns: i64) -> i64 {
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let by_ns = sent_at_ns
        .saturating_add(nanos(round_trip / 2))
        .saturating_sub(guest_ns);
    if by_ns.saturating_abs() > nanos(round_trip.max(PRECISION)) {
        by_ns
    } else {
        0
    }
}

/// Moves the clock; what it shows then.
async fn adjust(inner: &Inner, live: &Live, by_ns: i64) -> Result<i64, SandboxError> {
    const WHAT: &str = "adjust its clock";
    let call = Call::AdjustClock(AdjustClockRequest { by_ns });
    match live
        .call_within(WHAT, call, inner.config.timeouts.stats)
        .await?
    {
        response::Result::AdjustClock(told) => Ok(clock::nanos(told.unix_time_ns)),
        _ => Err(live.wrong_answer(WHAT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    #[test]
    fn clock_is_moved_by_what_the_round_trip_proves() {
        let trip = Duration::from_millis(10);
        let corrected = |guest_ns| correction(1000 * MS, trip, guest_ns);
        assert_eq!(corrected(1005 * MS), 0);
        assert_eq!(corrected(1000 * MS), 0);
        assert_eq!(corrected(1015 * MS), 0);
        assert_eq!(corrected(0), 1005 * MS);
        assert_eq!(corrected(2005 * MS), -1000 * MS);
        assert_eq!(correction(1000 * MS, Duration::ZERO, 1000 * MS + 10), 0);
        assert_eq!(correction(i64::MAX, trip, i64::MAX), 0);
        assert_eq!(correction(0, trip, i64::MAX), 5 * MS - i64::MAX);
    }
}
