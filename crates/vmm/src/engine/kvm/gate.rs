//! Whether the vCPUs may run: run, paused, or ended for good.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::kick::Kickable;

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// Shared by the vCPU threads and those who command them.
pub(super) struct Gate {
    want: AtomicU8,
    /// vCPUs that run no guest code: parked, not started, or ended.
    idle: Mutex<usize>,
    changed: Condvar,
    vcpus: Vec<Kickable>,
}

impl Gate {
    /// A closed gate for `count` vCPUs: they wait until [`Gate::open`].
    pub(super) fn new(count: usize) -> Self {
        Self {
            want: AtomicU8::new(PAUSE),
            idle: Mutex::new(count),
            changed: Condvar::new(),
            vcpus: (0..count).map(|_| Kickable::default()).collect(),
        }
    }

    /// The kick handle of vCPU `id`.
    pub(super) fn kickable(&self, id: usize) -> &Kickable {
        &self.vcpus[id]
    }

    fn idle(&self) -> MutexGuard<'_, usize> {
        // A count is never half-changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, want: u8) {
        let _guard = self.idle();
        if self.want.load(Ordering::SeqCst) != STOP {
            self.want.store(want, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    /// Whether a vCPU that runs may go on without asking at [`Gate::wait`].
    pub(super) fn is_open(&self) -> bool {
        self.want.load(Ordering::SeqCst) == RUN
    }

    /// A vCPU waits while the gate is closed; false: it must end. The vCPU
    /// counts as idle before the call and, if false, after.
    pub(super) fn wait(&self) -> bool {
        let mut idle = self.idle();
        loop {
            match self.want.load(Ordering::SeqCst) {
                RUN => {
                    *idle -= 1;
                    return true;
                }
                STOP => return false,
                _ => {
                    idle = self
                        .changed
                        .wait(idle)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    /// A vCPU that ran does so no more.
    pub(super) fn left(&self) {
        *self.idle() += 1;
        self.changed.notify_all();
    }

    /// Lets the vCPUs run.
    pub(super) fn open(&self) {
        self.set(RUN);
    }

    /// Stops the vCPUs; returns when none runs guest code.
    pub(super) fn close(&self) {
        self.set(PAUSE);
        self.kick();
        let mut idle = self.idle();
        while *idle < self.vcpus.len() {
            idle = self
                .changed
                .wait(idle)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the vCPUs for good; their threads end soon.
    pub(super) fn end(&self) {
        self.set(STOP);
        self.kick();
    }

    fn kick(&self) {
        self.vcpus.iter().for_each(Kickable::kick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn an_ended_gate_stays_ended() {
        let gate = Gate::new(1);
        gate.end();
        gate.open();
        assert!(!gate.is_open());
        assert!(!gate.wait());
    }

    #[test]
    fn close_returns_once_every_vcpu_has_left() {
        let gate = Arc::new(Gate::new(2));
        gate.open();
        let vcpus: Vec<_> = (0..2)
            .map(|_| {
                let gate = gate.clone();
                std::thread::spawn(move || {
                    while gate.wait() {
                        while gate.is_open() {
                            std::thread::yield_now();
                        }
                        gate.left();
                    }
                })
            })
            .collect();
        gate.close();
        assert_eq!(*gate.idle(), 2);
        gate.open();
        gate.end();
        for vcpu in vcpus {
            vcpu.join().unwrap();
        }
    }
}
