//! How large a pod's VM is.
//!
//! The kubelet gives the sum of its containers' limits, in which a container
//! without a limit counts as nothing. So the sum is a lower bound: a VM is never
//! smaller than the configured default, and what it does not use it does not take
//! from the node. Only where the pod's cgroup on the node is limited (all containers
//! have limits then) is it as small as that, if the containers' limits fit; the
//! pod's overhead (that of its RuntimeClass) is for the guest's own needs and for
//! the VM's processes.

use crate::Config;
use crate::error::CriError;
use crate::resources;
use cri_api::v1::{LinuxContainerResources, LinuxPodSandboxConfig};
use sandbox::SandboxSpec;

const MIB: u64 = 1 << 20;

/// A VM's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VmSize {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
}

/// The size for a pod with that configuration; `limit_mib`: what its cgroup on the
/// node is limited to.
pub(crate) fn vm_size(
    linux: Option<&LinuxPodSandboxConfig>,
    config: &Config,
    limit_mib: Option<u64>,
) -> Result<VmSize, CriError> {
    let part = |of: fn(&LinuxPodSandboxConfig) -> &Option<LinuxContainerResources>| {
        linux.and_then(|linux| of(linux).clone())
    };
    size(
        "config.linux.resources",
        &part(|linux| &linux.resources).unwrap_or_default(),
        &part(|linux| &linux.overhead).unwrap_or_default(),
        config,
        limit_mib.map(|mib| mib.saturating_sub(config.vmm_mib)),
    )
}

/// The least that limits need of a VM; `None` of what they do not limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) vcpus: Option<u64>,
    /// With what the guest needs for itself.
    pub(crate) memory_mib: Option<u64>,
}

/// What `limits` need, and besides them the pod's overhead; `context` is their
/// field's name.
pub(crate) fn needs(
    context: &str,
    limits: &LinuxContainerResources,
    overhead: &LinuxContainerResources,
    config: &Config,
) -> Result<Needs, CriError> {
    let mib = |of: &LinuxContainerResources| {
        let bytes = Some(resources::memory(of)).filter(|bytes| *bytes > 0);
        bytes.map(|b| b.div_ceil(MIB))
    };
    let stated = mib(overhead).unwrap_or(0);
    let own_mib = stated
        .saturating_sub(config.vmm_mib)
        .max(config.overhead_mib);
    let (quota, period) = resources::cpu(context, limits)?;
    Ok(Needs {
        vcpus: (quota > 0).then(|| quota.div_ceil(period)),
        memory_mib: mib(limits).map(|mib| mib.saturating_add(own_mib)),
    })
}

/// Refuses what is beyond the VM of a sandbox; `context` is the field's name.
pub(crate) fn check_fits(
    context: &str,
    spec: &SandboxSpec,
    needed: &Needs,
) -> Result<(), CriError> {
    for (field, needed, has, unit) in [
        (
            "memory_limit_in_bytes",
            needed.memory_mib,
            spec.memory_mib,
            "MiB of memory, the guest's own included",
        ),
        ("cpu_quota", needed.vcpus, spec.vcpus.into(), "CPUs"),
    ] {
        if let Some(needed) = needed.filter(|needed| *needed > has) {
            return Err(CriError::Precondition(format!(
                "{context}.{field}: needs {needed} {unit}; the virtual machine of sandbox {} has {has} and cannot grow while it runs: recreate the pod",
                spec.id
            )));
        }
    }
    Ok(())
}

/// The size for what `limits` need, not below the default where there is such room.
fn size(
    context: &str,
    limits: &LinuxContainerResources,
    overhead: &LinuxContainerResources,
    config: &Config,
    room_mib: Option<u64>,
) -> Result<VmSize, CriError> {
    let needs = needs(context, limits, overhead, config)?;
    let needed = needs.memory_mib.unwrap_or(config.memory_mib);
    let needed = needed.max(vm_spec::MIN_MEMORY_MIB);
    let room = room_mib.filter(|room| *room >= needed).unwrap_or(u64::MAX);
    let memory_mib = needed.max(config.memory_mib).min(room);
    if memory_mib > config.max_memory_mib {
        return Err(CriError::invalid(
            format!("{context}.memory_limit_in_bytes"),
            format!(
                "{memory_mib} MiB (with what the guest itself needs); this node gives a pod at most {} MiB",
                config.max_memory_mib
            ),
        ));
    }
    let asked = needs.vcpus.unwrap_or(0).max(u64::from(config.vcpus));
    let most = vm_spec::MAX_VCPUS;
    let vcpus = u32::try_from(asked).ok().filter(|vcpus| *vcpus <= most);
    let vcpus = vcpus.ok_or_else(|| {
        CriError::invalid(
            format!("{context}.cpu_quota"),
            format!("{asked} CPUs; a pod's VM has at most {most}"),
        )
    })?;
    Ok(VmSize { vcpus, memory_mib })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(cpu_quota: i64, memory_mib: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_quota,
            cpu_period: 100_000,
            memory_limit_in_bytes: memory_mib << 20,
            ..LinuxContainerResources::default()
        }
    }

    fn config() -> Config {
        Config::new("0", 4096)
    }

    fn of(limits: &LinuxContainerResources, overhead_mib: i64) -> Result<VmSize, CriError> {
        let overhead = self::limits(0, overhead_mib);
        size("c.resources", limits, &overhead, &config(), None)
    }

    #[test]
    fn pod_that_names_nothing_gets_the_default() {
        let default = VmSize {
            vcpus: 1,
            memory_mib: 512,
        };
        assert_eq!(vm_size(None, &config(), None).unwrap(), default);
        assert_eq!(of(&limits(0, 0), 0).unwrap(), default);
        assert_eq!(of(&limits(50_000, 16), 0).unwrap(), default);
    }

    #[test]
    fn limits_and_overhead_are_added() {
        let size = of(&limits(250_000, 1000), 0).unwrap();
        assert_eq!((size.vcpus, size.memory_mib), (3, 1064));
        assert_eq!(of(&limits(0, 1000), 200).unwrap().memory_mib, 1200);
    }

    #[test]
    fn vm_keeps_within_the_pods_cgroup_if_its_containers_do() {
        let mut config = config();
        config.vmm_mib = 32;
        let sized = |memory, overhead, limit_mib| {
            let linux = LinuxPodSandboxConfig {
                resources: Some(limits(0, memory)),
                overhead: Some(limits(0, overhead)),
                ..LinuxPodSandboxConfig::default()
            };
            vm_size(Some(&linux), &config, limit_mib)
                .unwrap()
                .memory_mib
        };
        // All of it within the limit: 96 MiB of the overhead are the guest's.
        assert_eq!(sized(100, 128, Some(228)), 196);
        assert_eq!(sized(100, 128, Some(1000)), 512);
        // A container without a limit, or without the cgroup.
        assert_eq!(sized(100, 128, None), 512);
        assert_eq!(sized(1000, 128, None), 1096);
        // The overhead is less than there is, or none is named.
        assert_eq!(sized(100, 64, Some(164)), 512);
        assert_eq!(sized(1000, 0, Some(1000)), 1064);
    }

    #[test]
    fn no_limit_as_cgroup_v1_tells_it_needs_no_memory() {
        let none = LinuxContainerResources {
            memory_limit_in_bytes: 0x7fff_ffff_ffff_f000,
            ..limits(50_000, 0)
        };
        let needed = needs("r", &none, &LinuxContainerResources::default(), &config()).unwrap();
        assert_eq!((needed.vcpus, needed.memory_mib), (Some(1), None));
    }

    #[test]
    fn what_no_vm_can_have_is_refused_by_field() {
        let error = of(&limits(0, 5000), 0).unwrap_err().to_string();
        assert!(error.starts_with("c.resources.memory_limit"), "{error}");
        let error = of(&limits(100 * 100_000, 0), 0).unwrap_err().to_string();
        assert!(error.starts_with("c.resources.cpu_quota"), "{error}");
    }

    proptest! {
        #[test]
        fn vm_holds_every_limit(quota in 1i64..6_400_000, memory in 1i64..4000) {
            let size = of(&limits(quota, memory), 1).unwrap();
            prop_assert!(i64::from(size.vcpus) * 100_000 >= quota);
            prop_assert!(size.memory_mib > memory.unsigned_abs());
        }
    }
}
