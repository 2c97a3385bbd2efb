//! A pod's network that is there already: after a restart, for a new VM, for
//! figures.

use crate::attach::{self, Attachment};
use crate::cni::answer::AddResult;
use crate::error::NetworkError;
use crate::netlink::{Link, Netlink};
use crate::netns::Netns;
use crate::network::Network;
use crate::nic::Nic;
use crate::record::{NetworkRecord, Phase};
use crate::tap::{self, TapError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// Traffic of one interface as the guest sees it, since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicCounters {
    /// The interface's name in the guest.
    pub name: String,
    /// Bytes that came to the guest.
    pub rx_bytes: u64,
    /// Frames that came to the guest.
    pub rx_packets: u64,
    /// Frames for the guest that were damaged.
    pub rx_errors: u64,
    /// Frames for the guest that its queue had no room for.
    pub rx_dropped: u64,
    /// Bytes that the guest sent.
    pub tx_bytes: u64,
    /// Frames that the guest sent.
    pub tx_packets: u64,
    /// Frames that the guest sent damaged.
    pub tx_errors: u64,
    /// Frames that the guest sent and that were dropped on the way to its link.
    pub tx_dropped: u64,
}

impl Network {
    /// What the guest of a running pod was given, without descriptors: its VM
    /// holds the TAPs.
    ///
    /// # Errors
    ///
    /// The namespace, an interface or a TAP is gone.
    pub fn adopt(&self, record: &NetworkRecord) -> Result<Attachment, NetworkError> {
        self.existing(record, |_| Ok(Vec::new()))
    }

    /// The same with new descriptors of the TAPs, for a new VM in the place of
    /// one that has ended.
    ///
    /// # Errors
    ///
    /// As [`Network::adopt`], or a TAP is still held by a VM.
    pub fn reopen(&self, record: &NetworkRecord) -> Result<Attachment, NetworkError> {
        let queues = record.queues;
        self.existing(record, |tap| {
            // The kernel would add queues to those that a VM holds, and share the
            // frames out over all of them.
            if tap.open_queues > 0 {
                return Err(TapError::Busy(tap.name.clone()).into());
            }
            Ok(tap::open(&tap.name, queues)?)
        })
    }

    /// CHECK by the plugins, after a look at namespace, interfaces and TAPs.
    ///
    /// # Errors
    ///
    /// What is not as it was made.
    pub fn check(&self, record: &NetworkRecord) -> Result<(), NetworkError> {
        self.adopt(record)?;
        let id = &record.pod.sandbox_id;
        self.in_turn(id, || {
            let Some(result) = &record.result else {
                return Ok(());
            };
            let target = record.target(record.netns.display().to_string());
            self.chain(&record.list).check(&target, result)?;
            Ok(())
        })
    }

    /// The traffic of each of the pod's interfaces, in the record's order.
    ///
    /// # Errors
    ///
    /// The namespace or a TAP is gone.
    pub fn counters(&self, record: &NetworkRecord) -> Result<Vec<NicCounters>, NetworkError> {
        let netns = Netns::open(&record.netns)?;
        let error = |source| NetworkError::Links {
            id: record.pod.sandbox_id.clone(),
            source,
        };
        netns.within(|| {
            let mut netlink = Netlink::open().map_err(error)?;
            record
                .nics
                .iter()
                .map(|nic| {
                    let stats = netlink.link(&nic.tap).map_err(error)?.stats;
                    // What the TAP receives is what the guest sends.
                    Ok(NicCounters {
                        name: nic.name.clone(),
                        rx_bytes: stats.tx_bytes,
                        rx_packets: stats.tx_packets,
                        rx_errors: stats.tx_errors,
                        rx_dropped: stats.tx_dropped,
                        tx_bytes: stats.rx_bytes,
                        tx_packets: stats.rx_packets,
                        tx_errors: stats.rx_errors,
                        tx_dropped: stats.rx_dropped,
                    })
                })
                .collect()
        })?
    }

    fn existing(
        &self,
        record: &NetworkRecord,
        open: impl Fn(&Link) -> Result<Vec<OwnedFd>, NetworkError> + Send,
    ) -> Result<Attachment, NetworkError> {
        let id = &record.pod.sandbox_id;
        if record.phase != Phase::Attached {
            return Err(NetworkError::Phase {
                id: id.clone(),
                phase: record.phase,
                wanted: Phase::Attached,
            });
        }
        self.in_turn(id, || {
            let result = record.add_result()?;
            let netns = Netns::open(&record.netns)?;
            let nics = netns.within(|| read_nics(record, &result, open))??;
            Ok(Attachment {
                pod_ips: attach::pod_ips(record, &result, &nics),
                nics,
                dns: result.dns,
                sysctls: BTreeMap::new(),
            })
        })
    }
}

fn read_nics(
    record: &NetworkRecord,
    result: &AddResult,
    open: impl Fn(&Link) -> Result<Vec<OwnedFd>, NetworkError>,
) -> Result<Vec<Nic>, NetworkError> {
    let error = |source| NetworkError::Links {
        id: record.pod.sandbox_id.clone(),
        source,
    };
    let mut netlink = Netlink::open().map_err(error)?;
    let mut found = attach::find_nics(&mut netlink, record, result)?;
    let mut nics = Vec::new();
    for known in &record.nics {
        // Making it anew would leave it without filters.
        let tap = netlink.link(&known.tap).map_err(error)?;
        let at = found.iter().position(|f| f.link.name == known.name);
        let at = at.ok_or_else(|| error(crate::NetlinkError::NoSuchLink(known.name.clone())))?;
        nics.push(found.swap_remove(at).into_nic(open(&tap)?));
    }
    Ok(nics)
}
