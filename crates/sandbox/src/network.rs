//! A sandbox's network: decided and recorded before anything of it is made, made
//! beside the start of the VMM, taken away after the VM's end (the kernel keeps a
//! namespace as long as a TAP in it is open).
//!
//! The calls of `pod_network` block for as long as plugins run; each is on a
//! thread where that is no harm, and none is given up in the middle.

use crate::Inner;
use crate::clock::Stopwatch;
use crate::config::Config;
use crate::error::{SandboxError, chain};
use crate::record::{Sandbox, SandboxState, stages};
use crate::registry::Entry;
use crate::spec::{DnsSpec, Engine};
use crate::usage::NetworkInterface;
use guest_api::proto as guest;
use pod_network::{
    AttachRequest, Collected, Dns, Network, NetworkError, NetworkList, NetworkRecord, Nic,
    NicCounters, PodIdentity, sysctl_path,
};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How often, and after which pause, GC is tried while plugins work for sandboxes.
const GC_TRIES: u32 = 600;
const GC_PAUSE: Duration = Duration::from_secs(1);

/// What the VM and its guest are told of their network; nothing of a sandbox
/// that has its loopback only.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    nics: Vec<Nic>,
    anti_spoof: bool,
    dns: Dns,
    sysctls: BTreeMap<String, String>,
}

fn failed(id: &str, what: &'static str) -> impl FnOnce(NetworkError) -> SandboxError {
    let id = id.to_owned();
    move |source| SandboxError::Network {
        id,
        what,
        source: Box::new(source),
    }
}

/// The network of this host's sandboxes.
pub(crate) fn open(config: &Config) -> Result<Network, SandboxError> {
    Network::new(config.network.clone()).map_err(failed("(all)", "be prepared"))
}

/// Whether sandboxes could be given a network now.
pub(crate) async fn status(inner: &Inner) -> Result<Arc<NetworkList>, SandboxError> {
    let network = Arc::clone(&inner.network);
    let status = crate::blocking("(all)", move || network.status()).await?;
    let status = status.map_err(NetworkError::NotReady);
    status.map_err(failed("pods", "be made now"))
}

/// What a sandbox's network will be; `None` where it wants its loopback only.
pub(crate) async fn plan(
    inner: &Inner,
    entry: &Entry,
) -> Result<Option<NetworkRecord>, SandboxError> {
    let Some(request) = entry.record.read(request) else {
        return Ok(None);
    };
    let network = Arc::clone(&inner.network);
    let planned = crate::blocking(&entry.id, move || network.plan(request)).await?;
    let planned = planned.map_err(failed(&entry.id, "be made"))?;
    let ignored = planned.ignored_capabilities();
    let insist = entry.record.read(|s| {
        s.spec
            .network
            .as_ref()
            .is_some_and(|network| network.insist)
    });
    for name in ["portMappings", "bandwidth"] {
        if !ignored.iter().any(|capability| capability == name) {
            continue;
        }
        let network = &planned.list.name;
        if insist {
            return Err(SandboxError::Invalid {
                field: "network",
                message: format!(
                    "the pod wants {name}, and no plugin of the network {network:?} declares that capability: leave it out (hostPort, bandwidth annotations), or add the plugin to the network's configuration"
                ),
            });
        }
        tracing::warn!(
            sandbox = entry.id,
            network,
            "the pod wants {name}, and no plugin of the network declares that capability"
        );
    }
    Ok(Some(planned))
}

fn request(sandbox: &Sandbox) -> Option<AttachRequest> {
    let spec = &sandbox.spec;
    let wanted = spec.network.as_ref()?;
    Some(AttachRequest {
        pod: PodIdentity {
            sandbox_id: spec.id.clone(),
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            uid: spec.uid.clone(),
        },
        capabilities: wanted.capabilities.clone(),
        queues: queues(sandbox.engine, spec.vcpus),
        anti_spoofing: None,
    })
}

/// A pair of queues a vCPU, on the engine that serves several.
fn queues(engine: Engine, vcpus: u32) -> u16 {
    let most = match engine {
        Engine::Kvm => vm_spec::MAX_QUEUE_PAIRS,
        Engine::Qemu => 1,
    };
    u16::try_from(vcpus.clamp(1, most)).unwrap_or(1)
}

/// Makes the network that is planned in the record.
pub(crate) async fn attach(inner: &Inner, entry: &Entry) -> Result<Attached, SandboxError> {
    let Some(mut record) = entry.record.read(|s| s.network.clone()) else {
        return Ok(Attached::default());
    };
    let clock = Stopwatch::start();
    let network = Arc::clone(&inner.network);
    let (result, record) = crate::blocking(&entry.id, move || {
        let result = network.attach(&mut record);
        (result, record)
    })
    .await?;
    let anti_spoof = record.anti_spoofing;
    // Also where it failed: it may not have been undone.
    entry
        .record
        .update(|sandbox| {
            sandbox.network = Some(record);
            if let Ok(attachment) = &result {
                sandbox.pod_ips.clone_from(&attachment.pod_ips);
                sandbox.stages.push(clock.stage(stages::NETWORK));
            }
        })
        .await?;
    let attachment = result.map_err(failed(&entry.id, "be made"))?;
    Ok(Attached {
        nics: attachment.nics,
        anti_spoof,
        dns: attachment.dns,
        sysctls: attachment.sysctls,
    })
}

/// Takes the network away; the VM has ended. Can be repeated.
pub(crate) async fn remove(inner: &Inner, entry: &Entry) -> Result<(), SandboxError> {
    let Some(record) = entry.record.read(|s| s.network.clone()) else {
        return Ok(());
    };
    let network = Arc::clone(&inner.network);
    let removed = crate::blocking(&entry.id, move || network.remove(&record)).await?;
    removed.map_err(failed(&entry.id, "be taken away yet"))
}

/// Looks whether the network of a VM that lives is still there, and, by the plugins'
/// own judgement (CHECK), as it was made. Nothing can be done for one that was
/// changed from outside, but to say so.
pub(crate) async fn check(inner: &Inner, entry: &Entry) {
    let Some(record) = entry.record.read(|s| s.network.clone()) else {
        return;
    };
    let network = Arc::clone(&inner.network);
    let checked = crate::blocking(&entry.id, move || network.check(&record)).await;
    // One that was stopped meanwhile has none any more.
    if entry.record.read(|s| s.state) != SandboxState::Ready {
        return;
    }
    let id = &entry.id;
    match checked {
        Ok(Ok(())) => {}
        // Plugins err: Debian 12's portmap does for every pod with a port.
        Ok(Err(error @ NetworkError::Plugin(_))) => tracing::warn!(
            sandbox = id,
            error = chain(&error),
            "a pod's network is not as its CNI plugins made it; if the pod cannot be reached, make it anew"
        ),
        Ok(Err(error)) => tracing::error!(
            sandbox = id,
            error = chain(&error),
            "a pod's network is gone; make the pod anew"
        ),
        Err(error) => tracing::error!(sandbox = id, error = chain(&error), "not checked"),
    }
}

/// Sandboxes that have a network of ours and no record.
pub(crate) async fn strays(inner: &Inner) -> Vec<String> {
    let known = known(inner);
    let network = Arc::clone(&inner.network);
    let found = crate::blocking("(all)", move || network.strays(&known)).await;
    match found.and_then(|found| found.map_err(failed("(all)", "be looked through"))) {
        Ok(ids) => ids,
        Err(error) => {
            tracing::error!(error = chain(&error), "networks of no sandbox may be left");
            Vec::new()
        }
    }
}

/// Removes one of [`strays`].
pub(crate) async fn remove_stray(inner: &Inner, id: &str) {
    let (network, stray) = (Arc::clone(&inner.network), id.to_owned());
    let removed = crate::blocking(id, move || network.remove_stray(&stray)).await;
    match removed.and_then(|removed| removed.map_err(failed(id, "be taken away yet"))) {
        Ok(()) => tracing::warn!(sandbox = id, "removed the network of no sandbox"),
        Err(error) => tracing::error!(
            sandbox = id,
            error = chain(&error),
            "the network of no sandbox stays"
        ),
    }
}

/// Has plugins forget what belongs to no sandbox, as soon as none of them works for
/// one.
pub(crate) async fn collect_garbage(inner: &Arc<Inner>) {
    for _ in 0..GC_TRIES {
        let collecting = Arc::clone(inner);
        let collected = crate::blocking("(all)", move || {
            collecting.network.collect_garbage(|| known(&collecting))
        });
        match collected.await {
            Ok(Collected::Busy) => tokio::time::sleep(GC_PAUSE).await,
            Ok(Collected::Done(failures)) => {
                for error in failures {
                    tracing::warn!(error = chain(&error), "a CNI plugin collected no garbage");
                }
                return;
            }
            Err(error) => return tracing::error!(error = chain(&error), "no garbage collected"),
        }
    }
    tracing::warn!("CNI plugins never rested: no garbage was collected (GC)");
}

fn known(inner: &Inner) -> Vec<NetworkRecord> {
    let entries = inner.registry.list();
    let record = |entry: &Arc<Entry>| entry.record.read(|s| s.network.clone());
    entries.iter().filter_map(record).collect()
}

/// The traffic of the sandbox's interfaces as the host counts it; none where it
/// has its loopback only. Blocks.
pub(crate) fn counters(network: &Network, record: &NetworkRecord) -> Vec<NetworkInterface> {
    let counters = network.counters(record).unwrap_or_else(|error| {
        let id = &record.pod.sandbox_id;
        tracing::warn!(sandbox = id, error = chain(&error), "no figures of traffic");
        Vec::new()
    });
    counters.into_iter().map(interface).collect()
}

fn interface(counters: NicCounters) -> NetworkInterface {
    NetworkInterface {
        name: counters.name,
        rx_bytes: counters.rx_bytes,
        rx_packets: counters.rx_packets,
        rx_errors: counters.rx_errors,
        rx_dropped: counters.rx_dropped,
        tx_bytes: counters.tx_bytes,
        tx_packets: counters.tx_packets,
        tx_errors: counters.tx_errors,
        tx_dropped: counters.tx_dropped,
    }
}

impl Attached {
    /// The VM's devices.
    pub(crate) fn devices(&self) -> Vec<vm_spec::proto::Nic> {
        let device = |nic: &Nic| vm_spec::proto::Nic {
            mac: nic.mac.0.to_vec(),
            mtu: nic.mtu,
            queue_pairs: u32::try_from(nic.taps.len()).unwrap_or(u32::MAX),
            anti_spoof: self.anti_spoof,
        };
        self.nics.iter().map(device).collect()
    }

    /// The TAPs of all devices, in their order. They are the VMM's from then on.
    pub(crate) fn take_taps(&mut self) -> Vec<OwnedFd> {
        let nics = self.nics.iter_mut();
        nics.flat_map(|nic| nic.taps.drain(..)).collect()
    }

    /// Name resolution as the network wants it, if it says anything.
    pub(crate) fn dns(&self) -> Option<DnsSpec> {
        let dns = self.dns.clone();
        let mut searches = dns.search;
        if searches.is_empty() {
            searches.extend(dns.domain);
        }
        (!dns.nameservers.is_empty()).then_some(DnsSpec {
            alone: false,
            servers: dns.nameservers,
            searches,
            options: dns.options,
        })
    }

    /// Kernel parameters that the network's plugins set, but for those that the pod has
    /// of its own.
    pub(crate) fn sysctls<'a>(
        &self,
        own: impl Iterator<Item = &'a String>,
    ) -> BTreeMap<String, String> {
        let mut sysctls = self.sysctls.clone();
        for name in own {
            sysctls.remove(&sysctl_path(name));
        }
        sysctls
    }

    /// The guest's interfaces.
    pub(crate) fn interfaces(&self) -> Vec<guest::Nic> {
        self.nics.iter().map(guest_nic).collect()
    }
}

fn guest_nic(nic: &Nic) -> guest::Nic {
    guest::Nic {
        name: nic.name.clone(),
        mac: nic.mac.0.to_vec(),
        mtu: nic.mtu,
        addresses: nic.addresses.iter().map(ToString::to_string).collect(),
        routes: nic
            .routes
            .iter()
            .map(|route| guest::Route {
                destination: route.destination.to_string(),
                gateway: route.gateway.map_or(String::new(), |ip| ip.to_string()),
                on_link: route.on_link,
                metric: route.metric.unwrap_or(0),
                mtu: route.mtu.unwrap_or(0),
            })
            .collect(),
        neighbours: nic
            .neighbours
            .iter()
            .map(|neighbour| guest::Neighbour {
                address: neighbour.address.to_string(),
                mac: neighbour.mac.0.to_vec(),
            })
            .collect(),
        // Another pod of the link could send them.
        accept_ra: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pod_network::{MacAddr, Route};

    fn nic(last: u8) -> Nic {
        Nic {
            name: format!("eth{last}"),
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            mtu: 1400,
            addresses: vec!["10.0.0.2/24".parse().unwrap()],
            routes: vec![Route {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some("10.0.0.1".parse().unwrap()),
                on_link: true,
                mtu: None,
                metric: Some(5),
            }],
            neighbours: Vec::new(),
            taps: Vec::new(),
        }
    }

    #[test]
    fn device_and_interface_have_one_address_by_which_the_guest_finds_it() {
        let attached = Attached {
            nics: vec![nic(1), nic(2)],
            anti_spoof: true,
            dns: Dns::default(),
            sysctls: BTreeMap::new(),
        };
        let (devices, interfaces) = (attached.devices(), attached.interfaces());
        for (device, interface) in devices.iter().zip(&interfaces) {
            assert_eq!((&device.mac, device.mtu), (&interface.mac, interface.mtu));
            assert!(device.anti_spoof);
        }
        assert_eq!(interfaces[1].name, "eth2");
        assert_eq!(interfaces[0].addresses, ["10.0.0.2/24"]);
        let route = &interfaces[0].routes[0];
        assert_eq!(
            (
                route.destination.as_str(),
                route.gateway.as_str(),
                route.on_link,
                route.metric,
                route.mtu
            ),
            ("0.0.0.0/0", "10.0.0.1", true, 5, 0)
        );
    }

    #[test]
    fn every_vcpu_has_its_queues_where_the_engine_serves_them() {
        assert_eq!(queues(Engine::Kvm, 1), 1);
        assert_eq!(queues(Engine::Kvm, 4), 4);
        assert_eq!(queues(Engine::Kvm, 64), 8);
        assert_eq!(queues(Engine::Qemu, 4), 1);
    }
}
