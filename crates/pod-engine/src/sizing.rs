//! How large a pod's VM is, and what its containers may use of it.

use crate::manifest::{Container, Manifest, Quantity, Resources};
use sandbox::ResourceSpec;
use std::collections::BTreeMap;

/// Name of the resource that is room on the scratch disk.
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// MiB of a scratch disk that its file system takes at least, besides a sixteenth.
const SCRATCH_OVERHEAD_MIB: u64 = 16;
/// Period of CPU quotas in microseconds, Kubernetes' own.
const CPU_PERIOD_US: u64 = 100_000;
/// Least quota the kernel takes, in microseconds.
const MIN_QUOTA_US: u64 = 1_000;

/// What a VM gets where the manifest says nothing, and what it costs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// vCPUs of a pod whose containers name no CPU.
    pub vcpus: u32,
    /// Memory in MiB of a pod whose containers name no memory.
    pub memory_mib: u64,
    /// Memory in MiB of a container that names none, beside others that do.
    pub container_memory_mib: u64,
    /// Memory in MiB for the guest's kernel and agent, on top of what the
    /// containers ask for.
    pub overhead_mib: u64,
    /// Processes and threads of one container; 0: no limit.
    pub pids_max: u64,
}

impl Default for Defaults {
    /// A pod that names nothing gets what a vSphere Pod gets: 1 vCPU, 512 MiB.
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory_mib: 512,
            container_memory_mib: 128,
            overhead_mib: 64,
            pids_max: 0,
        }
    }
}

/// A VM's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// 1 to [`vm_spec::MAX_VCPUS`].
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// Why no VM of this node can hold the pod, though each container fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// More vCPUs than a VM has.
    #[error(
        "the containers ask for {asked} vCPUs together; a pod's VM has at most {most}; ask for less"
    )]
    Vcpus {
        /// Asked for.
        asked: u64,
        /// To be had.
        most: u32,
    },
    /// More memory than the node gives.
    #[error(
        "the containers ask for {asked} MiB of memory together (with {overhead} MiB for the guest itself); this node gives a pod at most {most} MiB; ask for less or use a larger node"
    )]
    Memory {
        /// Asked for, in MiB.
        asked: u64,
        /// Of it for the guest.
        overhead: u64,
        /// To be had.
        most: u64,
    },
}

/// The limit, otherwise the request.
fn amount(resources: &Resources, name: &str) -> Option<Quantity> {
    let limit = resources.limits.get(name);
    limit.or_else(|| resources.requests.get(name)).copied()
}

/// Sum over the containers, or the largest init container if that is more:
/// they run one after the other before the rest. `None`: no container names it.
fn total(manifest: &Manifest, absent: u64, of: impl Fn(&Container) -> Option<u64>) -> Option<u64> {
    let spec = &manifest.spec;
    if spec
        .containers
        .iter()
        .chain(&spec.init_containers)
        .all(|c| of(c).is_none())
    {
        return None;
    }
    let sum = spec
        .containers
        .iter()
        .fold(0u64, |sum, c| sum.saturating_add(of(c).unwrap_or(absent)));
    let init = spec
        .init_containers
        .iter()
        .filter_map(of)
        .max()
        .unwrap_or(0);
    Some(sum.max(init))
}

/// The size of the manifest's VM.
///
/// # Errors
/// If no VM of a node with `most_mib` MiB for a pod can have it.
pub fn vm_size(
    manifest: &Manifest,
    defaults: &Defaults,
    most_mib: u64,
) -> Result<VmSize, SizeError> {
    let milli = total(manifest, 0, |c| {
        amount(&c.resources, "cpu").map(Quantity::milli)
    });
    let asked = milli
        .map_or(u64::from(defaults.vcpus), |milli| milli.div_ceil(1000))
        .max(1);
    let most = vm_spec::MAX_VCPUS;
    let vcpus = u32::try_from(asked).ok().filter(|n| *n <= most);
    let vcpus = vcpus.ok_or(SizeError::Vcpus { asked, most })?;

    // A tmpfs volume is guest memory, beside what the containers ask for.
    let tmpfs: u64 = manifest
        .spec
        .volumes
        .iter()
        .filter_map(|v| v.empty_dir.as_ref())
        .filter(|dir| dir.medium == "Memory")
        .filter_map(|dir| dir.size_limit)
        .fold(0, |sum, limit| sum.saturating_add(limit.ceil()));
    let absent = defaults.container_memory_mib << 20;
    let bytes = total(manifest, absent, |c| {
        amount(&c.resources, "memory").map(Quantity::ceil)
    });
    let asked = match bytes {
        None => defaults.memory_mib.saturating_add(tmpfs.div_ceil(1 << 20)),
        Some(bytes) => bytes
            .saturating_add(tmpfs)
            .div_ceil(1 << 20)
            .saturating_add(defaults.overhead_mib),
    };
    let memory_mib = asked.max(vm_spec::MIN_MEMORY_MIB);
    if memory_mib > most_mib {
        return Err(SizeError::Memory {
            asked: memory_mib,
            overhead: defaults.overhead_mib,
            most: most_mib,
        });
    }
    Ok(VmSize { vcpus, memory_mib })
}

/// Size in MiB of the pod's scratch disk, where the manifest says anything about it.
/// A container without a limit is given the default, or its request if that is more.
/// Limits bound the pod as a whole, its emptyDirs included; where there are none,
/// sizeLimits of emptyDirs come on top.
pub fn scratch_mib(manifest: &Manifest, default_mib: u64) -> Option<u64> {
    let default = default_mib << 20;
    let of = |container: &Container| {
        let named = |amounts: &BTreeMap<String, Quantity>| {
            amounts.get(EPHEMERAL_STORAGE).map(|amount| amount.ceil())
        };
        let resources = &container.resources;
        named(&resources.limits)
            .or_else(|| named(&resources.requests).map(|request| request.max(default)))
    };
    let volumes: u64 = manifest
        .spec
        .volumes
        .iter()
        .filter_map(|v| v.empty_dir.as_ref())
        .filter(|dir| dir.medium != "Memory")
        .filter_map(|dir| dir.size_limit)
        .fold(0, |sum, limit| sum.saturating_add(limit.ceil()));
    let bytes = match total(manifest, default, of) {
        Some(bytes) => bytes,
        None if volumes == 0 => return None,
        None => default.saturating_add(volumes),
    };
    // What the file system itself takes comes on top.
    let mib = bytes
        .div_ceil(1 << 20)
        .saturating_add(bytes >> 24)
        .saturating_add(SCRATCH_OVERHEAD_MIB);
    // A few sizes for all: each has its template.
    let mib = mib.next_multiple_of((mib.next_power_of_two() / 16).max(1));
    Some(mib.clamp(sandbox::MIN_SCRATCH_MIB, sandbox::MAX_SCRATCH_MIB))
}

/// Bytes that a container may change of its root; 0: no limit. A limit of nothing
/// leaves a byte: 0 says something else.
pub fn writable_layer_max(container: &Container) -> u64 {
    let limit = container.resources.limits.get(EPHEMERAL_STORAGE);
    limit.map_or(0, |limit| limit.ceil().max(1))
}

/// A container's limits inside the guest.
pub fn limits(container: &Container, defaults: &Defaults) -> ResourceSpec {
    let resources = &container.resources;
    let cpu_quota_us = resources.limits.get("cpu").map_or(0, |cpu| {
        let quota = cpu.milli().saturating_mul(CPU_PERIOD_US) / 1000;
        if quota == 0 {
            0
        } else {
            quota.max(MIN_QUOTA_US)
        }
    });
    let memory_max = resources.limits.get("memory").map_or(0, |m| m.ceil());
    ResourceSpec {
        cpu_quota_us,
        cpu_period_us: if cpu_quota_us == 0 { 0 } else { CPU_PERIOD_US },
        cpu_weight: weight(amount(resources, "cpu").map_or(0, Quantity::milli)),
        memory_max,
        memory_low: 0,
        pids_max: defaults.pids_max,
        // As the kubelet does with cgroup v2: a container dies as a whole.
        oom_group: memory_max > 0,
        ..ResourceSpec::default()
    }
}

/// cpu.weight for so many thousandths of a CPU, by the way of cpu.shares as
/// the kubelet goes: 2 to 262144 shares onto 1 to 10000.
fn weight(milli: u64) -> u64 {
    let shares = (milli.saturating_mul(1024) / 1000).clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::NodeLimits;
    use proptest::prelude::*;

    const MOST: u64 = 1 << 20;

    fn pod(spec: &str) -> Manifest {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}");
        let limits = NodeLimits {
            memory_mib: MOST,
            network: true,
        };
        Manifest::parse(&text, &limits).unwrap().0
    }

    fn container(name: &str, resources: &str) -> String {
        format!("{{name: {name}, image: i, resources: {resources}}}")
    }

    #[test]
    fn pod_that_names_nothing_gets_the_default() {
        let manifest = pod("{containers: [{name: c, image: i}]}");
        let size = vm_size(&manifest, &Defaults::default(), MOST).unwrap();
        assert_eq!(
            size,
            VmSize {
                vcpus: 1,
                memory_mib: 512
            }
        );
    }

    #[test]
    fn limits_are_summed_and_the_largest_init_container_counts() {
        let a = container("a", "{limits: {cpu: 1500m, memory: 256Mi}}");
        let b = container("b", "{requests: {cpu: 700m, memory: 64Mi}}");
        let defaults = Defaults::default();
        let manifest = pod(&format!("{{containers: [{a}, {b}]}}"));
        let size = vm_size(&manifest, &defaults, MOST).unwrap();
        assert_eq!(
            size,
            VmSize {
                vcpus: 3,
                memory_mib: 256 + 64 + 64
            }
        );
        let big = container("i", "{limits: {cpu: 4, memory: 1Gi}}");
        let manifest = pod(&format!(
            "{{containers: [{a}, {b}], initContainers: [{big}]}}"
        ));
        let size = vm_size(&manifest, &defaults, MOST).unwrap();
        assert_eq!(
            size,
            VmSize {
                vcpus: 4,
                memory_mib: 1024 + 64
            }
        );
    }

    #[test]
    fn memory_volumes_are_added() {
        let manifest = pod(
            "{containers: [{name: c, image: i}], volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 100Mi}}]}",
        );
        let size = vm_size(&manifest, &Defaults::default(), MOST).unwrap();
        assert_eq!(size.memory_mib, 612);
    }

    #[test]
    fn scratch_disk_holds_what_limits_allow() {
        let of = |containers: &str, volumes: &str| {
            let manifest = pod(&format!(
                "{{containers: [{containers}], volumes: [{volumes}]}}"
            ));
            scratch_mib(&manifest, 1024)
        };
        let a = container("a", "{limits: {ephemeral-storage: 320Mi}}");
        let b = container("b", "{}");
        let c = container("c", "{requests: {ephemeral-storage: 2Gi}}");
        let dir = "{name: v, emptyDir: {sizeLimit: 160Mi}}";
        assert_eq!(of(&b, ""), None);
        assert_eq!(of(&a, ""), Some(384));
        // The pod's limit bounds its volumes, too.
        assert_eq!(of(&a, dir), Some(384));
        assert_eq!(of(&format!("{a}, {b}"), ""), Some(1536));
        assert_eq!(of(&c, ""), Some(2304));
        assert_eq!(of(&b, dir), Some(1280));
        let memory = "{name: v, emptyDir: {medium: Memory, sizeLimit: 160Mi}}";
        assert_eq!(of(&b, memory), None);
        let zero = container("z", "{limits: {ephemeral-storage: '0'}}");
        let manifest = pod(&format!("{{containers: [{a}, {zero}, {b}]}}"));
        let limits: Vec<_> = manifest
            .spec
            .containers
            .iter()
            .map(writable_layer_max)
            .collect();
        assert_eq!(limits, [320 << 20, 1, 0]);
        assert_eq!(of(&zero, ""), Some(16));
    }

    #[test]
    fn sum_that_no_vm_can_have_is_refused() {
        let each = |n| container(n, "{limits: {cpu: 40, memory: 600Gi}}");
        let manifest = pod(&format!("{{containers: [{}, {}]}}", each("a"), each("b")));
        let error = vm_size(&manifest, &Defaults::default(), MOST).unwrap_err();
        assert!(matches!(
            error,
            SizeError::Vcpus {
                asked: 80,
                most: 64
            }
        ));
        let each = |n| container(n, "{limits: {memory: 600Gi}}");
        let manifest = pod(&format!("{{containers: [{}, {}]}}", each("a"), each("b")));
        let error = vm_size(&manifest, &Defaults::default(), MOST).unwrap_err();
        assert!(matches!(error, SizeError::Memory { .. }));
    }

    #[test]
    fn container_limits_become_cgroup_limits() {
        let manifest = pod(&format!(
            "{{containers: [{}]}}",
            container("a", "{limits: {cpu: 250m, memory: 64Mi}}")
        ));
        let got = limits(&manifest.spec.containers[0], &Defaults::default());
        assert_eq!((got.cpu_quota_us, got.cpu_period_us), (25_000, 100_000));
        assert_eq!((got.memory_max, got.oom_group), (64 << 20, true));
        assert_eq!(got.cpu_weight, 1 + (256 - 2) * 9999 / 262_142);
    }

    proptest! {
        #[test]
        fn vm_holds_every_limit(cpu in 1u64..32_000, memory in 1u64..100_000) {
            let resources = format!("{{limits: {{cpu: {cpu}m, memory: {memory}Mi}}}}");
            let manifest = pod(&format!("{{containers: [{}]}}", container("a", &resources)));
            let size = vm_size(&manifest, &Defaults::default(), MOST).unwrap();
            prop_assert!(u64::from(size.vcpus) * 1000 >= cpu);
            prop_assert!(size.memory_mib >= memory + 64);
            let weight = limits(&manifest.spec.containers[0], &Defaults::default()).cpu_weight;
            prop_assert!((1..=10_000).contains(&weight));
        }
    }
}
