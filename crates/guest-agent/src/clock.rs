//! The guest's clock: set when the sandbox is set up, and kept with the host's.

use crate::error::{AgentError, Doing};
use crate::sys;
use guest_api::proto::{AdjustClockRequest, AdjustClockResponse};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// From here on the clock jumps; below, no program sees time stand still or leap.
const JUMP_NS: u64 = 500_000_000;

/// Nanoseconds since the kernel started.
pub(crate) fn boot_time_ns() -> u64 {
    to_ns(clock_gettime(ClockId::Boottime))
}

/// Nanoseconds since the epoch.
pub(crate) fn unix_time_ns() -> u64 {
    to_ns(clock_gettime(ClockId::Realtime))
}

fn to_ns(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Sets the clock to nanoseconds since the epoch.
pub(crate) fn set(unix_time_ns: u64) -> Result<(), AgentError> {
    let time = Timespec {
        tv_sec: i64::try_from(unix_time_ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(unix_time_ns % 1_000_000_000).unwrap_or(0),
    };
    clock_settime(ClockId::Realtime, time).doing(|| "setting the clock".into())
}

/// Moves the clock.
pub(crate) fn adjust(request: AdjustClockRequest) -> Result<AdjustClockResponse, AgentError> {
    let by = request.by_ns;
    let done = match by.unsigned_abs() {
        0 => Ok(()),
        JUMP_NS.. => sys::clock::step_ns(by),
        _ => sys::clock::slew_us(by / 1000),
    };
    done.doing(|| format!("moving the clock by {by} ns"))?;
    Ok(AdjustClockResponse {
        unix_time_ns: unix_time_ns(),
    })
}
