//! UpdatePodSandboxResources.

use crate::error::CriError;
use crate::resources::to_spec;
use crate::service::RuntimeServer;
use crate::sizing::{check_fits, needs};
use cri_api::v1::{
    LinuxContainerResources, UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
};
use sandbox::{ResourceSpec, SandboxState};

/// UpdatePodSandboxResources: limits of all containers together, in force at once.
/// What the request leaves out stays as it is, what is -1 is limited no more. A
/// limit that the VM could not give is refused: it cannot grow.
pub(crate) async fn update_pod_sandbox_resources(
    server: &RuntimeServer,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, CriError> {
    let found = server.find_sandbox(&request.pod_sandbox_id)?;
    if found.sandbox.state != SandboxState::Ready {
        return Err(CriError::Precondition(format!(
            "sandbox {} is {:?}; only a ready one can be changed",
            found.id(),
            found.sandbox.state
        )));
    }
    let limits = request.resources.unwrap_or_default();
    let overhead = request.overhead.unwrap_or_default();
    let spec = &found.sandbox.spec;
    to_spec("overhead", &overhead, spec.vcpus)?;
    let changed = to_spec("resources", &limits, spec.vcpus)?;
    let needed = needs("resources", &limits, &overhead, &server.config)?;
    check_fits("resources", spec, &needed)?;
    let wanted = overlaid(&spec.resources, &limits, changed);
    if wanted != spec.resources {
        server.sandboxes.update_sandbox(found.id(), wanted).await?;
    }
    Ok(UpdatePodSandboxResourcesResponse {})
}

/// `current` with what `wish` sets, which is `changed`.
fn overlaid(
    current: &ResourceSpec,
    wish: &LinuxContainerResources,
    changed: ResourceSpec,
) -> ResourceSpec {
    let mut limits = current.clone();
    if wish.cpu_quota != 0 {
        limits.cpu_quota_us = changed.cpu_quota_us;
        limits.cpu_period_us = changed.cpu_period_us;
    }
    if wish.cpu_shares > 0 {
        limits.cpu_weight = changed.cpu_weight;
    }
    if wish.memory_limit_in_bytes != 0 {
        limits.memory_max = changed.memory_max;
    }
    if !wish.cpuset_cpus.is_empty() {
        limits.cpuset_cpus = changed.cpuset_cpus;
    }
    if !wish.cpuset_mems.is_empty() {
        limits.cpuset_mems = changed.cpuset_mems;
    }
    limits.unified.extend(changed.unified);
    // One container over the pod's limit does not end the others.
    limits.oom_group = false;
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(current: &ResourceSpec, wish: &LinuxContainerResources) -> ResourceSpec {
        overlaid(current, wish, to_spec("r", wish, 4).unwrap())
    }

    #[test]
    fn only_what_is_set_changes_and_minus_one_ends_a_limit() {
        let both = overlay(
            &ResourceSpec::default(),
            &LinuxContainerResources {
                cpu_quota: 50_000,
                memory_limit_in_bytes: 1 << 26,
                ..LinuxContainerResources::default()
            },
        );
        assert_eq!((both.cpu_quota_us, both.cpu_period_us), (50_000, 100_000));
        assert_eq!((both.memory_max, both.oom_group), (1 << 26, false));
        let wish = LinuxContainerResources {
            memory_limit_in_bytes: -1,
            cpu_shares: 512,
            ..LinuxContainerResources::default()
        };
        let changed = overlay(&both, &wish);
        assert_eq!((changed.memory_max, changed.cpu_quota_us), (0, 50_000));
        assert!(changed.cpu_weight > 0);
        assert_eq!(overlay(&both, &LinuxContainerResources::default()), both);
    }
}
