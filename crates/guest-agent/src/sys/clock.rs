//! adjtimex(2).
#![expect(unsafe_code, reason = "adjtimex")]

use rustix::io::Errno;

/// Moves CLOCK_REALTIME at once.
pub(crate) fn step_ns(by: i64) -> Result<(), Errno> {
    adjust(|change| {
        change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        // The fraction is never negative.
        change.time.tv_sec = by.div_euclid(1_000_000_000);
        change.time.tv_usec = by.rem_euclid(1_000_000_000);
    })
}

/// Moves CLOCK_REALTIME by making it faster or slower, in place of what is left of
/// an earlier call.
pub(crate) fn slew_us(by: i64) -> Result<(), Errno> {
    adjust(|change| {
        change.modes = libc::ADJ_OFFSET_SINGLESHOT;
        change.offset = by;
    })
}

fn adjust(fill: impl FnOnce(&mut libc::timex)) -> Result<(), Errno> {
    // SAFETY: all of it are integers, for which zero is a value.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    fill(&mut change);
    // SAFETY: the structure is ours and lives over the call.
    super::check(unsafe { libc::adjtimex(&raw mut change) }.into())?;
    Ok(())
}
