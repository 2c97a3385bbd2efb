//! Figures of many VMs at once, and rates from two readings.

use sandbox::{SandboxStats, Sandboxes};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// VMs that are asked side by side.
const SIDE_BY_SIDE: usize = 32;
/// How long a list waits for VMs: those that do not answer in time are shown as
/// they were last.
const PATIENCE: Duration = Duration::from_secs(2);
/// Readings nearer to each other tell no rate.
const WINDOW_NS: i64 = 1_000_000_000;

/// Reads figures and remembers the last ones.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    sandboxes: Sandboxes,
    slots: Arc<Semaphore>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    last: HashMap<String, SandboxStats>,
    /// Sandboxes that are being asked.
    asked: HashSet<String>,
    rates: HashMap<String, Reading>,
}

/// CPU time at a moment, and the rate that was found then.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at_ns: i64,
    cpu_ns: u64,
    nano_cores: u64,
}

impl Figures {
    pub(crate) fn new(sandboxes: Sandboxes) -> Self {
        Self {
            sandboxes,
            slots: Arc::new(Semaphore::new(SIDE_BY_SIDE)),
            memory: Arc::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Figures of these sandboxes. One whose VM is silent has its last ones, with
    /// their time; one that never answered has none.
    pub(crate) async fn of(&self, ids: &BTreeSet<&str>) -> HashMap<String, SandboxStats> {
        self.forget_removed();
        let mut asking = JoinSet::new();
        for id in ids {
            let known = {
                let mut memory = self.memory();
                let new = memory.asked.insert((*id).to_owned());
                !new && memory.last.contains_key(*id)
            };
            // Somebody waits for it already: no second question to a silent VM.
            if !known {
                asking.spawn(self.clone().ask((*id).to_owned()));
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while let Ok(Some(_)) = tokio::time::timeout_at(deadline, asking.join_next()).await {}
        // The late ones still bring their figures for the next list.
        asking.detach_all();
        let memory = self.memory();
        ids.iter()
            .filter_map(|id| Some(((*id).to_owned(), memory.last.get(*id)?.clone())))
            .collect()
    }

    async fn ask(self, id: String) {
        let result = {
            // Never closed.
            let _slot = self.slots.acquire().await;
            self.sandboxes.stats(&id).await
        };
        let mut memory = self.memory();
        memory.asked.remove(&id);
        match result {
            Ok(stats) => {
                memory.last.insert(id, stats);
            }
            Err(error) => tracing::debug!(sandbox = id, %error, "no figures"),
        }
    }

    /// Nanoseconds of CPU time per second: since the last reading, or at first
    /// since the start.
    pub(crate) fn rate(&self, id: &str, at_ns: i64, cpu_ns: u64, started_at_ns: i64) -> u64 {
        let mut memory = self.memory();
        let rates = &mut memory.rates;
        let reading = next(rates.get(id).copied(), at_ns, cpu_ns, started_at_ns);
        rates.insert(id.to_owned(), reading);
        reading.nano_cores
    }

    /// Forgets what is no more.
    fn forget_removed(&self) {
        let mut known: HashSet<String> = self
            .sandboxes
            .sandboxes()
            .into_iter()
            .map(|sandbox| sandbox.spec.id)
            .collect();
        let mut memory = self.memory();
        memory.last.retain(|id, _| known.contains(id));
        let containers = self.sandboxes.all_containers();
        known.extend(containers.into_iter().map(|container| container.id));
        memory.rates.retain(|id, _| known.contains(id));
    }
}

/// The reading after `before`.
fn next(before: Option<Reading>, at_ns: i64, cpu_ns: u64, started_at_ns: i64) -> Reading {
    let (since_ns, cpu_then) = match before {
        Some(before) if at_ns.saturating_sub(before.at_ns) < WINDOW_NS => return before,
        // A counter that fell was begun anew.
        Some(before) if before.cpu_ns <= cpu_ns => (before.at_ns, before.cpu_ns),
        _ => (started_at_ns, 0),
    };
    let elapsed = u128::from(at_ns.saturating_sub(since_ns).max(1).unsigned_abs());
    let spent = u128::from(cpu_ns - cpu_then);
    let nano_cores = spent * 1_000_000_000 / elapsed;
    Reading {
        at_ns,
        cpu_ns,
        nano_cores: u64::try_from(nano_cores).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn rate_is_that_since_the_last_reading() {
        let first = next(None, 10 * SECOND, 1_000_000_000, 6 * SECOND);
        assert_eq!(first.nano_cores, 250_000_000);
        let second = next(Some(first), 12 * SECOND, 4_000_000_000, 6 * SECOND);
        assert_eq!(second.nano_cores, 1_500_000_000);
        // Too near: the same again.
        let third = next(Some(second), 12 * SECOND + 1, 9_000_000_000, 6 * SECOND);
        assert_eq!(
            (third.nano_cores, third.at_ns),
            (1_500_000_000, 12 * SECOND)
        );
        // Begun anew.
        let fourth = next(Some(second), 14 * SECOND, 1_000_000_000, 13 * SECOND);
        assert_eq!(fourth.nano_cores, 1_000_000_000);
    }

    proptest! {
        #[test]
        fn no_figures_make_it_fail(
            at in any::<i64>(), cpu in any::<u64>(), start in any::<i64>(),
            later in any::<i64>(), more in any::<u64>(),
        ) {
            let first = next(None, at, cpu, start);
            next(Some(first), later, more, start);
        }
    }
}
