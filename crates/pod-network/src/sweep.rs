//! What no record knows any more is removed.

use crate::error::NetworkError;
use crate::netns;
use crate::network::Network;
use crate::record::{self, NetworkRecord};
use std::collections::BTreeSet;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Sandboxes whose remains are gone.
    pub removed: Vec<String>,
    /// Those that could not be removed; the next sweep tries again.
    pub failed: Vec<(String, NetworkError)>,
    /// Plugins that failed on GC.
    pub gc_failed: Vec<crate::PluginError>,
}

impl Network {
    /// Removes networks of ours that none of `known` names, with DEL by our copy
    /// of their record; then tells plugins that collect garbage (CNI 1.1) which
    /// attachments are left. To be called when no attach is under way that
    /// `known` does not name: after the daemon's start.
    ///
    /// # Errors
    ///
    /// Our directories cannot be read.
    pub fn sweep(&self, known: &[NetworkRecord]) -> Result<SweepReport, NetworkError> {
        let kept: BTreeSet<&str> = known.iter().map(|r| r.pod.sandbox_id.as_str()).collect();
        let mut found: BTreeSet<String> = self.cache.ids()?.into_iter().collect();
        found.extend(record::names(&self.netns_dir(), "")?);
        let mut report = SweepReport::default();
        for id in found.into_iter().filter(|id| !kept.contains(id.as_str())) {
            match self.remove_unknown(&id) {
                Ok(()) => report.removed.push(id),
                Err(e) => report.failed.push((id, e)),
            }
        }
        if let Ok(list) = self.current_list() {
            let valid: Vec<(&str, &str)> = known
                .iter()
                .filter(|record| record.list.name == list.name)
                .map(|record| (record.pod.sandbox_id.as_str(), record.interface.as_str()))
                .collect();
            report.gc_failed = self.chain(&list).gc(&valid);
        }
        Ok(report)
    }

    fn remove_unknown(&self, id: &str) -> Result<(), NetworkError> {
        if let Some(record) = self.cache.get(id)? {
            return self.remove(&record);
        }
        // Without a copy nothing was asked of a plugin yet: it is written first.
        self.in_turn(id, || netns::remove(&self.netns_path(id)))?;
        Ok(())
    }
}
