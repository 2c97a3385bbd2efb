//! A pod's network goes: plugins left running, DEL, TAPs, namespace, our copy.

use crate::error::NetworkError;
use crate::leftovers;
use crate::netlink::Netlink;
use crate::netns::{self, Netns};
use crate::network::Network;
use crate::record::{NetworkRecord, Phase, this_boot};
use crate::tap;

impl Network {
    /// Removes whatever there is of a pod's network, at any step of its making,
    /// also after a crash or a reboot. May be called any number of times; after a
    /// failure the rest is still there, and the next call goes on. The VM should
    /// have ended: the kernel keeps the namespace while a TAP is open.
    ///
    /// # Errors
    ///
    /// What could not be removed. A plugin's failure stops it there, since the
    /// plugins before it in the list may need what is left.
    pub fn remove(&self, record: &NetworkRecord) -> Result<(), NetworkError> {
        let id = &record.pod.sandbox_id;
        self.in_turn(id, || {
            // Our copy is ahead of the caller's when the daemon was killed
            // between a step and the caller's storing of it.
            let copy = match self.cache.get(id) {
                Ok(copy) => copy,
                Err(e) => {
                    tracing::warn!(sandbox = id, error = crate::chain_text(&e), "copy not used");
                    None
                }
            };
            let mut record = copy.unwrap_or_else(|| record.clone());
            self.take_away(&mut record)
        })
    }

    /// Removes a pod's network without asking the plugins, for one whose plugins
    /// are gone for good. What they made outside the namespace stays.
    ///
    /// # Errors
    ///
    /// The namespace or our copy could not be removed.
    pub fn abandon(&self, record: &NetworkRecord) -> Result<(), NetworkError> {
        let id = &record.pod.sandbox_id;
        self.in_turn(id, || self.remove_namespace(record))
    }

    pub(crate) fn take_away(&self, record: &mut NetworkRecord) -> Result<(), NetworkError> {
        let id = record.pod.sandbox_id.clone();
        // Not known to have ended: the daemon may have been killed beside them.
        if record.phase != Phase::Attached {
            leftovers::end_plugins(&id, &record.netns)?;
        }
        let there = netns::exists(&record.netns)?;
        // After a start of the host the namespace is gone and our copy with it, and the
        // caller's record is of before: the plugins know whether they gave anything.
        let unknown = record.boot != this_boot();
        if record.phase != Phase::Planned || there || unknown {
            record.phase = Phase::Removing;
            self.cache.put(record)?;
            let netns = if there {
                record.netns.display().to_string()
            } else {
                String::new()
            };
            let target = record.target(netns);
            let _del = self.attaching();
            self.chain(&record.list)
                .del(&target, record.result.as_ref())?;
        }
        self.remove_namespace(record)?;
        tracing::info!(sandbox = id, "pod network removed");
        Ok(())
    }

    fn remove_namespace(&self, record: &NetworkRecord) -> Result<(), NetworkError> {
        if netns::exists(&record.netns)? {
            let netns = Netns::open(&record.netns)?;
            netns.within(|| delete_taps(record))??;
        }
        netns::remove(&record.netns)?;
        self.cache.remove(&record.pod.sandbox_id)?;
        Ok(())
    }
}

/// The TAPs would go with the namespace, but that stays as long as anyone holds
/// one of them open.
fn delete_taps(record: &NetworkRecord) -> Result<(), NetworkError> {
    let error = |source| NetworkError::Links {
        id: record.pod.sandbox_id.clone(),
        source,
    };
    let mut netlink = Netlink::open().map_err(error)?;
    let links = netlink.links().map_err(error)?;
    for link in links.iter().filter(|l| tap::is_ours(&l.name)) {
        netlink.delete_link(&link.name).map_err(error)?;
    }
    Ok(())
}
