//! Stats: figures of the guest, the pod and its containers, read from the kernel
//! when they are asked for and at no other time.
//!
//! What a kernel does not offer is absent, never an error. The work for one
//! answer is bounded ([`Budget`]), whatever containers have filled their process
//! tables and layers with; past the bound a figure is a lower bound.

mod control_files;
mod file_system;
mod guest;
mod processes;

use crate::cgroup::Cgroup;
use crate::clock::unix_time_ns;
use crate::layout;
use guest_api::proto::{ContainerUsage, StatsResponse, Usage};
use prost::Message as _;

/// How much is looked at for one answer.
#[derive(Debug)]
struct Budget {
    /// Processes whose descriptors are counted.
    processes: usize,
    /// Descriptors looked at to tell sockets.
    descriptors: usize,
    /// Files of writable layers whose file system keeps no account of them.
    files: usize,
}

const BUDGET: Budget = Budget {
    processes: 20_000,
    descriptors: 50_000,
    files: 50_000,
};

/// Largest answer in bytes: below the wire's largest frame.
const MAX_ANSWER: usize = wire::MAX_FRAME - (64 << 10);

/// Reads all figures of `containers` (id, cgroup, writable layer) and, where
/// `pod` is given, of the pod and the guest.
pub(crate) fn read<'a>(
    pod: Option<&Cgroup>,
    containers: impl Iterator<Item = (&'a str, &'a Cgroup, &'a str)>,
) -> StatsResponse {
    let mut budget = BUDGET;
    let mut response = StatsResponse {
        timestamp_ns: unix_time_ns(),
        ..StatsResponse::default()
    };
    for (id, cgroup, layer) in containers {
        let mut usage = of_cgroup(cgroup);
        let counts = processes::count(cgroup, &mut budget);
        (usage.processes, usage.file_descriptors) = (counts.processes, counts.descriptors);
        usage.sockets = counts.sockets;
        usage.file_system = file_system::of_layer(layer, &mut budget);
        response.containers.push(ContainerUsage {
            container_id: id.to_owned(),
            usage: Some(usage),
        });
    }
    if let Some(pod) = pod {
        let mut usage = of_cgroup(pod);
        // Every process of the pod is a container's.
        for of_one in response.containers.iter().filter_map(|c| c.usage.as_ref()) {
            usage.processes += of_one.processes;
            usage.file_descriptors += of_one.file_descriptors;
            usage.sockets += of_one.sockets;
        }
        usage.file_system = file_system::of_whole(layout::SCRATCH);
        response.sandbox = Some(usage);
        response.interfaces = guest::interfaces();
        (response.guest_memory_used, response.guest_memory_total) = guest::memory();
        response.guest_cpu_ns = guest::cpu_ns();
    }
    fit(&mut response, MAX_ANSWER);
    response
}

fn of_cgroup(cgroup: &Cgroup) -> Usage {
    let number = |file: &str| {
        let text = cgroup.read(file)?;
        control_files::limit(&text)
    };
    Usage {
        cpu: control_files::cpu(cgroup),
        memory: control_files::memory(cgroup),
        io: control_files::io(cgroup),
        threads: number("pids.current").unwrap_or(0),
        threads_max: number("pids.max").unwrap_or(0),
        ..Usage::default()
    }
}

/// Leaves out details until the answer has at most `size` bytes. Only a pod with
/// hundreds of containers gets there.
fn fit(response: &mut StatsResponse, size: usize) {
    let clear: [fn(&mut Usage); 2] = [
        |usage| {
            if let Some(io) = &mut usage.io {
                io.devices.clear();
            }
        },
        |usage| {
            if let Some(cpu) = &mut usage.cpu {
                cpu.pressure = None;
            }
            if let Some(memory) = &mut usage.memory {
                memory.pressure = None;
            }
            usage.io = None;
        },
    ];
    for clear in clear {
        if response.encoded_len() <= size {
            return;
        }
        for usage in response
            .containers
            .iter_mut()
            .filter_map(|c| c.usage.as_mut())
        {
            clear(usage);
        }
    }
    while response.encoded_len() > size && response.containers.pop().is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_api::proto::{DeviceIo, IoUsage};

    #[test]
    fn figures_that_are_not_there_are_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let cgroup = Cgroup::at(path.to_owned());
        let response = read(Some(&cgroup), [("c", &cgroup, "/nonexistent")].into_iter());
        let usage = response.containers[0].usage.as_ref().unwrap();
        assert!(usage.cpu.is_none() && usage.memory.is_none() && usage.io.is_none());
        assert!(usage.file_system.is_none());
        assert_eq!((usage.processes, usage.threads), (0, 0));
        // The guest's own are this machine's here.
        assert!(response.guest_memory_total > response.guest_memory_used);
        assert!(response.guest_memory_used > 0 && response.guest_cpu_ns > 0);
        assert!(response.interfaces.iter().any(|i| i.name == "lo"));
    }

    #[test]
    fn one_container_is_read_without_the_rest() {
        let cgroup = Cgroup::at("/nonexistent".to_owned());
        let response = read(None, [("c", &cgroup, "")].into_iter());
        assert!(response.sandbox.is_none() && response.interfaces.is_empty());
        assert_eq!(response.containers.len(), 1);
    }

    #[test]
    fn an_answer_too_large_loses_details_first() {
        let device = DeviceIo {
            read_bytes: u64::MAX,
            ..DeviceIo::default()
        };
        let usage = Usage {
            io: Some(IoUsage {
                devices: vec![device; 10],
                pressure: None,
            }),
            threads: 1,
            ..Usage::default()
        };
        let container = ContainerUsage {
            container_id: "c".to_owned(),
            usage: Some(usage),
        };
        let mut response = StatsResponse {
            containers: vec![container; 10],
            ..StatsResponse::default()
        };
        fit(&mut response, 200);
        assert!(response.encoded_len() <= 200);
        assert_eq!(response.containers.len(), 10);
        fit(&mut response, 20);
        assert!(response.encoded_len() <= 20);
    }
}
