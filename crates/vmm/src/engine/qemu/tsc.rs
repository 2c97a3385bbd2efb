//! How fast the guest's time stamp counter runs: TCG shows it the host's own.
//!
//! The guest cannot find out by itself. Its one other clock to compare with is an
//! emulated timer, which comes late where the host is busy. A guest that does not know
//! counts timer interrupts as its time, and loses each one that came late for good.

#![expect(unsafe_code)]
// UNSAFETY: the counter is read.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::thread;
use std::time::{Duration, Instant};

/// A reading is off by 100 ns or less, so this gives the frequency to 20 millionths.
const SPAN: Duration = Duration::from_millis(10);
/// Readings of which the one least disturbed counts.
const READINGS: usize = 16;

/// "Advanced power management information" of the processor (AMD's manual, volume 3,
/// E.4.6; Intel's, volume 2, CPUID).
const POWER_MANAGEMENT: u32 = 0x8000_0007;
/// The counter runs at one rate in all states of the processor.
const INVARIANT_TSC: u32 = 1 << 8;

/// The counter's frequency in kilohertz; `None` where it is no clock.
pub(super) fn khz() -> Option<u64> {
    let known = __cpuid(0x8000_0000).eax >= POWER_MANAGEMENT;
    if !known || __cpuid(POWER_MANAGEMENT).edx & INVARIANT_TSC == 0 {
        return None;
    }
    let (start, start_ticks) = reading();
    thread::sleep(SPAN);
    let (end, end_ticks) = reading();
    per_millisecond(end_ticks.checked_sub(start_ticks)?, end - start)
}

fn per_millisecond(ticks: u64, time: Duration) -> Option<u64> {
    let rounded = u128::from(ticks) * 1_000_000 + time.as_nanos() / 2;
    u64::try_from(rounded.checked_div(time.as_nanos())?).ok()
}

/// A moment and the counter's value then.
fn reading() -> (Instant, u64) {
    let attempt = || {
        let before = ticks();
        let now = Instant::now();
        let took = ticks().saturating_sub(before);
        (took, now, before + took / 2)
    };
    let best = (1..READINGS).fold(attempt(), |best, _| {
        let next = attempt();
        if next.0 < best.0 { next } else { best }
    });
    (best.1, best.2)
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it touches no memory.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_is_ticks_in_a_millisecond_to_the_nearest() {
        let ms = Duration::from_millis;
        assert_eq!(per_millisecond(25_961_340, ms(10)), Some(2_596_134));
        assert_eq!(per_millisecond(25_961_346, ms(10)), Some(2_596_135));
        assert_eq!(per_millisecond(1, Duration::ZERO), None);
        assert_eq!(per_millisecond(u64::MAX, Duration::from_nanos(1)), None);
    }

    #[test]
    fn two_measurements_agree() {
        let (Some(first), Some(second)) = (khz(), khz()) else {
            return;
        };
        assert!(first.abs_diff(second) <= first / 1000, "{first} {second}");
    }
}
