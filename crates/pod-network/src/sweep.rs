//! What no record knows any more is removed.

use crate::cni::plugin::PluginError;
use crate::error::NetworkError;
use crate::netns;
use crate::network::Network;
use crate::record::NetworkRecord;
use std::collections::BTreeSet;
use std::sync::TryLockError;

/// What came of collecting garbage.
#[derive(Debug)]
pub enum Collected {
    /// All plugins were asked; those that failed.
    Done(Vec<PluginError>),
    /// An attach or removal is under way: nothing was asked, to be tried later.
    Busy,
}

impl Network {
    /// Sandboxes of which something of a network is there, and that none of `known`
    /// names. To be called when no attach is under way that `known` does not name:
    /// at the daemon's start.
    ///
    /// # Errors
    ///
    /// Our directories cannot be read.
    pub fn strays(&self, known: &[NetworkRecord]) -> Result<Vec<String>, NetworkError> {
        let kept: BTreeSet<&str> = known.iter().map(|r| r.pod.sandbox_id.as_str()).collect();
        // A copy is written before anything is made, and goes last.
        let mut found = self.cache.ids()?;
        found.retain(|id| !kept.contains(id.as_str()));
        found.sort();
        Ok(found)
    }

    /// Removes the network of such a sandbox, with DEL by our copy of its record.
    ///
    /// # Errors
    ///
    /// As [`Network::remove`]; the next start tries again.
    pub fn remove_stray(&self, id: &str) -> Result<(), NetworkError> {
        if let Some(record) = self.cache.get(id)? {
            return self.remove(&record);
        }
        // It went meanwhile, or cannot be read.
        self.in_turn(id, || netns::remove(&self.netns_path(id)))?;
        Ok(())
    }

    /// Tells plugins that collect garbage (CNI 1.1) which attachments are left:
    /// those of the records that `known` returns. GC excludes ADD and DEL of the
    /// network (SPEC.md, "GC"): those that begin meanwhile wait for its end, which
    /// comes with the first plugin that hangs.
    pub fn collect_garbage(&self, known: impl FnOnce() -> Vec<NetworkRecord>) -> Collected {
        let _alone = match self.attaching.try_write() {
            Ok(guard) => guard,
            // It guards no data.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Collected::Busy,
        };
        let Ok(list) = self.current_list() else {
            return Collected::Done(Vec::new());
        };
        let known = known();
        let valid: Vec<(&str, &str)> = known
            .iter()
            .filter(|record| record.list.name == list.name)
            .map(|record| (record.pod.sandbox_id.as_str(), record.interface.as_str()))
            .collect();
        let mut chain = self.chain(&list);
        chain.timeout = self.aside_timeout();
        Collected::Done(chain.gc(&valid))
    }
}
