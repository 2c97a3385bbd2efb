//! Figures of a sandbox and its containers: read in the guest, and of the VM's
//! processes and files on the host.

use crate::Inner;
use crate::error::SandboxError;
use crate::live::Live;
use crate::record::SandboxState;
use crate::registry::{ContainerEntry, Entry};
use crate::usage::{NetworkInterface, Usage, interfaces};
use crate::{cgroup, network};
use guest_api::proto::{StatsRequest, StatsResponse, client_message::Call, response};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vm_launcher::HostUsage;

const WHAT: &str = "read its figures";
/// Bytes of a block as stat(2) counts them.
const STAT_BLOCK: u64 = 512;

/// Figures of a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxStats {
    /// Nanoseconds since the epoch, by the host's clock.
    pub timestamp_ns: i64,
    /// All containers together; its file system is the scratch disk.
    pub usage: Usage,
    /// The guest's interfaces; the host's own counters of its network.
    pub interfaces: Vec<NetworkInterface>,
    /// The guest as a whole.
    pub guest: GuestTotals,
    /// The VM on the host.
    pub host: HostUsage,
    /// Bytes of the host's disk that the scratch disk takes.
    pub scratch_bytes: u64,
    /// One for each container that the guest still has.
    pub containers: Vec<ContainerStats>,
}

/// Figures of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStats {
    /// The container.
    pub container_id: String,
    /// Nanoseconds since the epoch, by the host's clock.
    pub timestamp_ns: i64,
    /// Its figures.
    pub usage: Usage,
}

/// A guest with its kernel and agent, as its own kernel counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestTotals {
    /// Bytes that are not available.
    pub memory_used: u64,
    /// Bytes that the kernel has.
    pub memory_total: u64,
    /// CPU time that was not idle, in nanoseconds.
    pub cpu_ns: u64,
}

/// Asks the guest and measures its VM, both at once.
pub(crate) async fn sandbox(inner: &Inner, entry: &Entry) -> Result<SandboxStats, SandboxError> {
    let live = entry.require_live()?;
    let state = entry.record.read(|s| s.state);
    if state != SandboxState::Ready {
        // Of one that is being made nobody would answer.
        return Err(entry.wrong_state(state, "Ready"));
    }
    let (answer, host) = tokio::join!(
        ask(inner, &live, String::new()),
        measure(inner, entry, &live)
    );
    let (answer, measured) = (answer?, host?);
    let timestamp_ns = crate::clock::now_ns();
    let known: BTreeSet<String> = entry.containers().iter().map(|c| c.id.clone()).collect();
    Ok(SandboxStats {
        timestamp_ns,
        usage: answer.sandbox.map(Into::into).unwrap_or_default(),
        interfaces: with_measured(interfaces(answer.interfaces), measured.interfaces),
        guest: GuestTotals {
            memory_used: answer.guest_memory_used.min(answer.guest_memory_total),
            memory_total: answer.guest_memory_total,
            cpu_ns: answer.guest_cpu_ns,
        },
        host: measured.host,
        scratch_bytes: measured.scratch_bytes,
        containers: own(answer.containers, known)
            .map(|(container_id, usage)| ContainerStats {
                container_id,
                timestamp_ns,
                usage,
            })
            .collect(),
    })
}

/// Asks the guest for one container's figures.
pub(crate) async fn container(
    inner: &Inner,
    entry: &Entry,
    item: &ContainerEntry,
) -> Result<ContainerStats, SandboxError> {
    let live = entry.require_live()?;
    let answer = ask(inner, &live, item.id.clone()).await?;
    let (container_id, usage) = own(answer.containers, BTreeSet::from([item.id.clone()]))
        .next()
        .ok_or_else(|| live.wrong_answer(WHAT))?;
    Ok(ContainerStats {
        container_id,
        timestamp_ns: crate::clock::now_ns(),
        usage,
    })
}

/// Those containers that are the sandbox's, each once, whatever else the guest
/// tells.
fn own(
    told: Vec<guest_api::proto::ContainerUsage>,
    mut known: BTreeSet<String>,
) -> impl Iterator<Item = (String, Usage)> {
    told.into_iter().filter_map(move |container| {
        let id = known.take(&container.container_id)?;
        Some((id, container.usage.unwrap_or_default().into()))
    })
}

async fn ask(
    inner: &Inner,
    live: &Live,
    container_id: String,
) -> Result<StatsResponse, SandboxError> {
    let call = Call::Stats(StatsRequest { container_id });
    let limit = inner.config.timeouts.stats;
    match live.call_within(WHAT, call, limit).await? {
        response::Result::Stats(answer) => Ok(answer),
        _ => Err(live.wrong_answer(WHAT)),
    }
}

/// What the host sees of a VM, whatever its guest says.
struct Measured {
    host: HostUsage,
    /// Bytes of the scratch disk.
    scratch_bytes: u64,
    /// Its network's.
    interfaces: Vec<NetworkInterface>,
}

/// The guest's interfaces; those that the host knows too as the host counts them.
fn with_measured(
    told: Vec<NetworkInterface>,
    measured: Vec<NetworkInterface>,
) -> Vec<NetworkInterface> {
    let known = |name: &str| measured.iter().any(|m| m.name == name);
    let mut all: Vec<_> = told.into_iter().filter(|i| !known(&i.name)).collect();
    all.extend(measured);
    all
}

async fn measure(inner: &Inner, entry: &Entry, live: &Arc<Live>) -> Result<Measured, SandboxError> {
    let cgroup = entry.record.read(cgroup::of);
    let vmm_pid = live.process.pid();
    let (engine_pid, record) = entry.record.read(|s| (s.engine_pid, s.network.clone()));
    let network = Arc::clone(&inner.network);
    let scratch = live.paths.scratch();
    crate::blocking(&entry.id, move || {
        let engine_pid = (engine_pid != 0).then_some(engine_pid);
        let host = vm_launcher::host_usage(vmm_pid, engine_pid, cgroup.as_ref());
        Measured {
            host,
            scratch_bytes: std::fs::metadata(scratch).map_or(0, |meta| meta.blocks() * STAT_BLOCK),
            interfaces: record.map_or(Vec::new(), |record| network::counters(&network, &record)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_api::proto::ContainerUsage;

    #[test]
    fn containers_of_nobody_and_repeated_ones_are_left_out() {
        let told = ["a", "x", "a", "b"].map(|id| ContainerUsage {
            container_id: id.into(),
            usage: None,
        });
        let known = BTreeSet::from(["a".to_owned(), "b".to_owned(), "c".to_owned()]);
        let ids: Vec<String> = own(told.into(), known).map(|(id, _)| id).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
