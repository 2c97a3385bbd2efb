//! A device's call to itself at a time: "poll me then".

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A timer that the device sets at the end of each turn, and that other threads
/// may let go off at once.
#[derive(Debug)]
pub(crate) struct Alarm {
    /// `None` if the process had no descriptor left when the device was made.
    timer: Option<OwnedFd>,
    /// Somebody let it go off since the turn began.
    called: AtomicBool,
}

impl Alarm {
    pub(crate) fn new() -> Self {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Alarm {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags).ok(),
            called: AtomicBool::new(false),
        }
    }

    /// Whether it can go off at all.
    pub(crate) fn works(&self) -> bool {
        self.timer.is_some()
    }

    /// Goes off at once, from any thread.
    pub(crate) fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.arm(Some(Duration::ZERO));
    }

    /// A turn begins: what calls asked for until now is done in it.
    pub(crate) fn begin_turn(&self) {
        self.called.store(false, Ordering::Release);
    }

    /// A turn ends: goes off after `time`, or not; at once if somebody called
    /// since the turn began.
    pub(crate) fn end_turn(&self, time: Option<Duration>) {
        self.arm(time);
        // After it: a call in between was overridden, a later one overrides it.
        if self.called.load(Ordering::Acquire) {
            self.arm(Some(Duration::ZERO));
        }
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }

    /// Sets the timer; forgets that it went off.
    fn arm(&self, time: Option<Duration>) {
        let Some(timer) = &self.timer else {
            return;
        };
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = match time {
            None => zero,
            // Some years are for ever; zero would be never.
            Some(time) => Timespec::try_from(
                time.clamp(Duration::from_nanos(1), Duration::from_secs(1 << 30)),
            )
            .unwrap_or(zero),
        };
        let setting = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        // Fails for values that are none, which these are not.
        let _ = timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn goes_off(alarm: &Alarm, within: Duration) -> bool {
        let fd = alarm.fd().expect("a timer");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let within = Timespec::try_from(within).expect("a short time");
        poll(&mut fds, Some(&within)).expect("poll") == 1
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn goes_off_when_it_was_set_to_and_is_taken_back() {
        let alarm = Alarm::new();
        assert!(!goes_off(&alarm, Duration::ZERO));
        alarm.end_turn(Some(Duration::from_millis(1)));
        assert!(goes_off(&alarm, LONG));
        alarm.end_turn(None);
        assert!(!goes_off(&alarm, Duration::ZERO));
        alarm.end_turn(Some(LONG));
        assert!(!goes_off(&alarm, Duration::ZERO));
    }

    #[test]
    fn a_call_during_a_turn_is_not_lost() {
        let alarm = Alarm::new();
        alarm.begin_turn();
        alarm.call();
        alarm.end_turn(None);
        assert!(goes_off(&alarm, LONG));
        alarm.begin_turn();
        alarm.end_turn(None);
        assert!(!goes_off(&alarm, Duration::ZERO));
        alarm.call();
        assert!(goes_off(&alarm, LONG));
    }
}
