//! A pod gets its network: namespace, ADD, TAPs.

use crate::anti_spoof;
use crate::cni::answer::{self, AddResult, Dns};
use crate::error::NetworkError;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::network::Network;
use crate::nic::{self, Found, Nic};
use crate::record::{NetworkRecord, NicRecord, Phase};
use crate::{redirect, sysctls, tap};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

/// A pod's network, ready for the VM.
#[derive(Debug)]
pub struct Attachment {
    /// The guest's interfaces, the one asked for first.
    pub nics: Vec<Nic>,
    /// The pod's addresses: those of the first interface, in the order of the
    /// CNI's result.
    pub pod_ips: Vec<IpAddr>,
    /// Name resolution as the network wants it; Kubernetes gives the pod its own.
    pub dns: Dns,
    /// Kernel parameters that plugins have set, by their paths below /proc/sys; of a
    /// network that was just made.
    pub sysctls: BTreeMap<String, String>,
}

impl Network {
    /// Makes the planned network. On success the record holds the result, to be
    /// stored again. On failure all is undone and the record is as planned,
    /// except after [`NetworkError::NotUndone`].
    ///
    /// # Errors
    ///
    /// What failed, with its cause.
    pub fn attach(&self, record: &mut NetworkRecord) -> Result<Attachment, NetworkError> {
        let id = record.pod.sandbox_id.clone();
        self.in_turn(&id, || {
            if record.phase != Phase::Planned {
                return Err(NetworkError::Phase {
                    id: id.clone(),
                    phase: record.phase,
                    wanted: Phase::Planned,
                });
            }
            let planned = record.clone();
            let cause = match self.make(record) {
                Ok(attachment) => return Ok(attachment),
                Err(cause) => cause,
            };
            tracing::warn!(
                sandbox = id,
                error = crate::chain_text(&cause),
                "pod network not made; undoing it"
            );
            match self.take_away(record) {
                Ok(()) => {
                    *record = planned;
                    Err(cause)
                }
                Err(undo) => Err(NetworkError::NotUndone {
                    cause: Box::new(cause),
                    undo: Box::new(undo),
                }),
            }
        })
    }

    fn make(&self, record: &mut NetworkRecord) -> Result<Attachment, NetworkError> {
        record.phase = Phase::Attaching;
        self.cache.put(record)?;
        let dir = &self.config.netns_dir;
        fs::create_dir_all(dir).map_err(|source| NetworkError::Directory {
            path: dir.clone(),
            source,
        })?;
        let netns = Netns::create(&record.netns)?;
        let adding = self.attaching();
        for place in 0..record.list.plugins.len() {
            let target = record.target(record.netns.display().to_string());
            let chain = self.chain(&record.list);
            let result = chain.add(place, &target, record.result.as_ref())?;
            record.result = result;
            self.cache.put(record)?;
        }
        drop(adding);
        let result = record.add_result()?;
        let (made, sysctls) = netns.within(|| {
            let made = make_nics(record, &result)?;
            Ok::<_, NetworkError>((made, sysctls::read(&record.list, &record.interface)))
        })??;
        record.nics = made.iter().map(|(record, _)| record.clone()).collect();
        record.phase = Phase::Attached;
        self.cache.put(record)?;
        let nics: Vec<Nic> = made.into_iter().map(|(_, nic)| nic).collect();
        tracing::info!(
            sandbox = record.pod.sandbox_id,
            network = record.list.name,
            interfaces = nics.len(),
            "pod network made"
        );
        Ok(Attachment {
            pod_ips: pod_ips(record, &result, &nics),
            nics,
            dns: result.dns,
            sysctls,
        })
    }
}

impl NetworkRecord {
    /// The last result of ADD, read.
    pub(crate) fn add_result(&self) -> Result<AddResult, NetworkError> {
        let Some(value) = &self.result else {
            return Ok(AddResult::default());
        };
        answer::parse(value).map_err(|source| NetworkError::StoredResult {
            id: self.pod.sandbox_id.clone(),
            source,
        })
    }
}

/// The addresses of the first interface in the result's order; as the kernel has
/// them where the result is silent.
pub(crate) fn pod_ips(record: &NetworkRecord, result: &AddResult, nics: &[Nic]) -> Vec<IpAddr> {
    let given = nic::addresses_of(result, &record.interface, true);
    let first = nics.first().map(|nic| nic.addresses.as_slice());
    let addresses = if given.is_empty() {
        first.unwrap_or_default()
    } else {
        &given
    };
    addresses.iter().map(ipnet::IpNet::addr).collect()
}

/// The interfaces of the namespace that the guest is to have, the one asked for
/// first. To be called in the namespace.
pub(crate) fn find_nics(
    netlink: &mut Netlink,
    record: &NetworkRecord,
    result: &AddResult,
) -> Result<Vec<Found>, NetworkError> {
    let in_pod = |sandbox: &str| same_file(Path::new(sandbox), &record.netns);
    let mut found = nic::read(netlink, result, &record.interface, in_pod)?;
    found.sort_by_key(|found| found.link.name != record.interface);
    Ok(found)
}

/// Paths may differ (links, several mounts); the namespace behind them does not.
fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| -> io::Result<(u64, u64)> {
        let metadata = fs::metadata(path)?;
        Ok((metadata.st_dev(), metadata.st_ino()))
    };
    a == b || matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

fn make_nics(
    record: &NetworkRecord,
    result: &AddResult,
) -> Result<Vec<(NicRecord, Nic)>, NetworkError> {
    let links_error = |source| NetworkError::Links {
        id: record.pod.sandbox_id.clone(),
        source,
    };
    let mut netlink = Netlink::open().map_err(links_error)?;
    let found = find_nics(&mut netlink, record, result)?;
    let rules = netlink.rules().map_err(links_error)?;
    if rules > 0 {
        tracing::warn!(
            sandbox = record.pod.sandbox_id,
            network = record.list.name,
            rules,
            "plugins made routing rules (sbr), which the guest does not have: it routes by its main table alone"
        );
    }
    found
        .into_iter()
        .enumerate()
        .map(|(place, found)| {
            let tap = tap::name(place);
            let taps = join(&mut netlink, record, &found, &tap)?;
            let nic_record = NicRecord {
                name: found.link.name.clone(),
                tap,
                mac: found.mac,
                mtu: found.link.mtu,
            };
            Ok((nic_record, found.into_nic(taps)))
        })
        .collect()
}

impl Found {
    pub(crate) fn into_nic(self, taps: Vec<OwnedFd>) -> Nic {
        Nic {
            name: self.link.name,
            mac: self.mac,
            mtu: self.link.mtu,
            addresses: self.addresses,
            routes: self.routes,
            neighbours: self.neighbours,
            taps,
        }
    }
}

/// Makes a TAP and joins it to the interface. The TAP's filters are there before
/// it is up, and it is up before frames are sent to it.
fn join(
    netlink: &mut Netlink,
    record: &NetworkRecord,
    found: &Found,
    tap: &str,
) -> Result<Vec<OwnedFd>, NetworkError> {
    let addresses: Vec<IpAddr> = found.addresses.iter().map(ipnet::IpNet::addr).collect();
    let program = record
        .anti_spoofing
        .then(|| anti_spoof::program(found.mac, &addresses))
        .transpose()?;
    let descriptors = tap::open(tap, record.queues)?;
    silence(tap);
    let mut connect = || {
        let tap_index = netlink.link(tap)?.index;
        netlink.set_mtu(tap_index, found.link.mtu)?;
        match &program {
            Some(program) => redirect::matching(netlink, tap_index, found.link.index, program)?,
            None => redirect::all(netlink, tap_index, found.link.index)?,
        }
        netlink.set_up(tap_index)?;
        if !found.link.up {
            netlink.set_up(found.link.index)?;
        }
        redirect::all(netlink, found.link.index, tap_index)
    };
    connect().map_err(|source| NetworkError::Join {
        interface: found.link.name.clone(),
        source,
    })?;
    Ok(descriptors)
}

/// Keeps the kernel of the namespace from speaking IPv6 on the TAP (router
/// solicitations, multicast reports): the guest would hear it as a neighbour.
fn silence(tap: &str) {
    let switch = format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6");
    if let Err(e) = fs::write(&switch, "1")
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%switch, %e, "cannot switch IPv6 off on a TAP");
    }
}
