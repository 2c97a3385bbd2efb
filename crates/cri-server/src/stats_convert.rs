//! Figures of guests and their VMs as the CRI's messages.

use crate::record::{CriContainer, CriSandbox};
use cri_api::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use sandbox::SandboxStats;
use sandbox::usage::{self, NetworkInterface, Pressure, Stall, Usage};

/// The loopback's name: a pod's traffic is counted without it.
const LOOPBACK: &str = "lo";
/// Interfaces that lead nowhere: the guest's kernel makes one at its boot.
const DUMMY: &str = "dummy";
/// The interface that Kubernetes' tools take as the pod's.
const DEFAULT_INTERFACE: &str = "eth0";

/// A container's statistics; `pods_dir` is where its writable layer lies.
pub(crate) fn container(
    of: &CriContainer,
    figures: &sandbox::ContainerStats,
    nano_cores: u64,
    pods_dir: &str,
) -> ContainerStats {
    let at = figures.timestamp_ns;
    let usage = &figures.usage;
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: of.id().to_owned(),
            metadata: of.config.metadata.clone(),
            labels: of.config.labels.clone(),
            annotations: of.config.annotations.clone(),
        }),
        cpu: Some(cpu(at, usage.cpu.total_ns, nano_cores, usage)),
        memory: Some(container_memory(at, &usage.memory)),
        writable_layer: Some(FilesystemUsage {
            timestamp: at,
            fs_id: Some(FilesystemIdentifier {
                mountpoint: pods_dir.to_owned(),
            }),
            used_bytes: value(usage.file_system.used_bytes),
            inodes_used: value(usage.file_system.used_inodes),
        }),
        // Guests have no swap.
        swap: Some(SwapUsage {
            timestamp: at,
            swap_available_bytes: value(0),
            swap_usage_bytes: value(0),
        }),
        io: Some(io(at, usage)),
    }
}

/// A sandbox's statistics: its containers together, and what its VM takes of the
/// node besides.
pub(crate) fn sandbox(
    of: &CriSandbox,
    figures: &SandboxStats,
    nano_cores: u64,
    containers: Vec<ContainerStats>,
) -> PodSandboxStats {
    let at = figures.timestamp_ns;
    let usage = &figures.usage;
    PodSandboxStats {
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(cpu(at, pod_cpu_ns(figures), nano_cores, usage)),
            memory: Some(pod_memory(figures)),
            network: network(at, &figures.interfaces),
            process: Some(ProcessUsage {
                timestamp: at,
                process_count: value(usage.processes),
            }),
            containers,
            io: Some(io(at, usage)),
        }),
        ..sandbox_without_figures(of)
    }
}

/// A sandbox that has no VM.
pub(crate) fn sandbox_without_figures(of: &CriSandbox) -> PodSandboxStats {
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: of.id().to_owned(),
            metadata: of.config.metadata.clone(),
            labels: of.config.labels.clone(),
            annotations: of.config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats::default()),
        windows: None,
    }
}

/// CPU time of a pod in nanoseconds: that of the VM's processes, which holds the
/// guest's.
pub(crate) fn pod_cpu_ns(figures: &SandboxStats) -> u64 {
    figures.host.cpu_ns.max(figures.usage.cpu.total_ns)
}

/// Bytes of the node's memory that the VM takes besides its containers'.
pub(crate) fn overhead_bytes(figures: &SandboxStats) -> u64 {
    let host = &figures.host;
    let taken = match (host.cgroup_bytes, host.pss_bytes) {
        (Some(bytes), _) if bytes > 0 => bytes,
        (_, 0) => host.rss_bytes,
        (_, bytes) => bytes,
    };
    taken.saturating_sub(figures.usage.memory.current)
}

/// Bytes in use that cannot be had back at once.
pub(crate) fn working_set(memory: &usage::MemoryUsage) -> u64 {
    memory.current.saturating_sub(memory.inactive_file)
}

/// The interfaces that count as the pod's: its own, or else the loopback.
pub(crate) fn pod_interfaces(all: &[NetworkInterface]) -> Vec<&NetworkInterface> {
    let is_own = |i: &&NetworkInterface| i.name != LOOPBACK && !i.name.starts_with(DUMMY);
    let own: Vec<_> = all.iter().filter(is_own).collect();
    if own.is_empty() {
        return all.iter().filter(|i| i.name == LOOPBACK).collect();
    }
    own
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(at: i64, total_ns: u64, nano_cores: u64, usage: &Usage) -> CpuUsage {
    CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(total_ns),
        usage_nano_cores: value(nano_cores),
        psi: Some(psi(&usage.cpu.pressure)),
    }
}

fn container_memory(at: i64, memory: &usage::MemoryUsage) -> MemoryUsage {
    let working_set = working_set(memory);
    MemoryUsage {
        timestamp: at,
        working_set_bytes: value(working_set),
        // Without a limit nothing is known to be available.
        available_bytes: match memory.limit {
            0 => None,
            limit => value(limit.saturating_sub(working_set)),
        },
        usage_bytes: value(memory.current),
        rss_bytes: value(memory.anonymous),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: Some(psi(&memory.pressure)),
    }
}

fn pod_memory(figures: &SandboxStats) -> MemoryUsage {
    let memory = &figures.usage.memory;
    let overhead = overhead_bytes(figures);
    let guest = &figures.guest;
    MemoryUsage {
        working_set_bytes: value(working_set(memory).saturating_add(overhead)),
        available_bytes: value(guest.memory_total.saturating_sub(guest.memory_used)),
        usage_bytes: value(memory.current.saturating_add(overhead)),
        rss_bytes: value(memory.anonymous.saturating_add(overhead)),
        ..container_memory(figures.timestamp_ns, memory)
    }
}

fn network(at: i64, interfaces: &[NetworkInterface]) -> Option<NetworkUsage> {
    let mut found = pod_interfaces(interfaces);
    if found.is_empty() {
        return None;
    }
    let by_name = found.iter().position(|i| i.name == DEFAULT_INTERFACE);
    let default = found.remove(by_name.unwrap_or(0));
    Some(NetworkUsage {
        timestamp: at,
        default_interface: Some(interface(default)),
        interfaces: found.into_iter().map(interface).collect(),
    })
}

fn interface(of: &NetworkInterface) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: of.name.clone(),
        rx_bytes: value(of.rx_bytes),
        rx_errors: value(of.rx_errors),
        tx_bytes: value(of.tx_bytes),
        tx_errors: value(of.tx_errors),
    }
}

fn io(at: i64, usage: &Usage) -> IoUsage {
    IoUsage {
        timestamp: at,
        psi: Some(psi(&usage.io.pressure)),
    }
}

fn psi(pressure: &Pressure) -> PsiStats {
    PsiStats {
        full: Some(stall(&pressure.full)),
        some: Some(stall(&pressure.some)),
    }
}

fn stall(stall: &Stall) -> PsiData {
    PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::{GuestTotals, HostUsage};

    fn figures() -> SandboxStats {
        SandboxStats {
            timestamp_ns: 5,
            usage: Usage {
                cpu: usage::CpuUsage {
                    total_ns: 30,
                    ..usage::CpuUsage::default()
                },
                memory: usage::MemoryUsage {
                    current: 100,
                    inactive_file: 40,
                    anonymous: 50,
                    ..usage::MemoryUsage::default()
                },
                ..Usage::default()
            },
            interfaces: Vec::new(),
            guest: GuestTotals {
                memory_used: 150,
                memory_total: 500,
                cpu_ns: 35,
            },
            host: HostUsage {
                cpu_ns: 70,
                rss_bytes: 900,
                pss_bytes: 300,
                cgroup_bytes: None,
                processes: 2,
                threads: 9,
            },
            scratch_bytes: 0,
            containers: Vec::new(),
        }
    }

    fn get(value: Option<UInt64Value>) -> Option<u64> {
        value.map(|v| v.value)
    }

    #[test]
    fn pod_has_its_containers_figures_and_the_vms_own_share() {
        let figures = figures();
        assert_eq!(pod_cpu_ns(&figures), 70);
        assert_eq!(overhead_bytes(&figures), 200);
        let memory = pod_memory(&figures);
        assert_eq!(memory.timestamp, 5);
        assert_eq!(get(memory.usage_bytes), Some(300));
        assert_eq!(get(memory.working_set_bytes), Some(260));
        assert_eq!(get(memory.rss_bytes), Some(250));
        assert_eq!(get(memory.available_bytes), Some(350));
    }

    #[test]
    fn overhead_is_of_the_cgroup_where_there_is_one_and_never_negative() {
        let mut figures = figures();
        figures.host.cgroup_bytes = Some(400);
        assert_eq!(overhead_bytes(&figures), 300);
        figures.host.cgroup_bytes = Some(0);
        figures.host.pss_bytes = 0;
        assert_eq!(overhead_bytes(&figures), 800);
        figures.usage.memory.current = 5000;
        assert_eq!(overhead_bytes(&figures), 0);
    }

    #[test]
    fn container_without_limit_has_nothing_available() {
        let mut memory = figures().usage.memory;
        assert_eq!(get(container_memory(1, &memory).available_bytes), None);
        memory.limit = 90;
        let found = container_memory(1, &memory);
        assert_eq!(get(found.available_bytes), Some(30));
        assert_eq!(get(found.working_set_bytes), Some(60));
        assert_eq!(get(found.rss_bytes), Some(50));
    }

    #[test]
    fn default_interface_is_eth0_and_the_loopback_only_alone() {
        let named = |name: &str| NetworkInterface {
            name: name.into(),
            rx_bytes: 7,
            ..NetworkInterface::default()
        };
        assert_eq!(network(1, &[]), None);
        let alone = network(1, &[named("dummy0"), named("lo")]).unwrap();
        assert_eq!(alone.default_interface.unwrap().name, "lo");
        let several = network(
            1,
            &[named("lo"), named("dummy0"), named("net1"), named("eth0")],
        )
        .unwrap();
        assert_eq!(several.default_interface.unwrap().name, "eth0");
        let others: Vec<_> = several.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(others, ["net1"]);
    }

    #[test]
    fn pressure_is_told_in_nanoseconds() {
        let pressure = Pressure {
            some: Stall {
                total_us: 3,
                avg10: 1.5,
                ..Stall::default()
            },
            full: Stall::default(),
        };
        let some = psi(&pressure).some.unwrap();
        assert_eq!((some.total, some.avg10), (3000, 1.5));
    }
}
