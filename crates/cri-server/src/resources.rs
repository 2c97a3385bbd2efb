//! Limits: from the CRI's form (cgroup v1 words) to the guest's cgroup v2.
//!
//! Without effect: `memory_swap_limit_in_bytes` (the guest has no swap) and
//! `hugepage_limits` of 0, which the kubelet sends for every page size.

use crate::error::CriError;
use crate::record::CriContainer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cri_api::v1::LinuxContainerResources;
use prost::Message;
use sandbox::ResourceSpec;

/// Annotation of the sandbox crate's record with the limits after an update;
/// clients do not see it.
pub(crate) const UPDATED: &str = "cri.spherule.dev/resources";

/// Period of CPU quotas where the request names none, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Periods that the kernel takes, in microseconds.
const PERIODS_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// Least quota that the kernel takes, in microseconds.
const MIN_QUOTA_US: u64 = 1_000;
/// What cgroup v1 calls no limit of memory: the most that whole pages (of up to 64
/// KiB) come to. The kubelet passes on what it reads of a pod's cgroup.
const UNLIMITED: i64 = i64::MAX - 0xffff;
/// Values that the kernel takes as a process's oom_score_adj.
const OOM_SCORES: std::ops::RangeInclusive<i64> = -1000..=1000;

/// `value` as a count: 0 or less is "not set".
fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Memory in bytes; 0: no limit.
pub(crate) fn memory(wish: &LinuxContainerResources) -> u64 {
    match wish.memory_limit_in_bytes {
        UNLIMITED.. => 0,
        limit => count(limit),
    }
}

/// CPU quota and period in microseconds; quota 0: no limit.
pub(crate) fn cpu(context: &str, wish: &LinuxContainerResources) -> Result<(u64, u64), CriError> {
    let quota = count(wish.cpu_quota);
    if quota == 0 {
        return Ok((0, 0));
    }
    let period = match count(wish.cpu_period) {
        0 => CPU_PERIOD_US,
        period if PERIODS_US.contains(&period) => period,
        period => {
            return Err(CriError::invalid(
                format!("{context}.cpu_period"),
                format!("{period} µs; must be 1000 to 1000000"),
            ));
        }
    };
    Ok((quota.max(MIN_QUOTA_US), period))
}

/// What a container of a VM with `vcpus` may use.
pub(crate) fn to_spec(
    context: &str,
    wish: &LinuxContainerResources,
    vcpus: u32,
) -> Result<ResourceSpec, CriError> {
    let (cpu_quota_us, cpu_period_us) = cpu(context, wish)?;
    let memory_max = memory(wish);
    check_cpus(context, &wish.cpuset_cpus, vcpus)?;
    check_hugepages(context, wish)?;
    if !matches!(wish.cpuset_mems.as_str(), "" | "0") {
        return Err(CriError::invalid(
            format!("{context}.cpuset_mems"),
            format!(
                "{:?}: the pod's VM has one memory node, 0",
                wish.cpuset_mems
            ),
        ));
    }
    let bad = |name: &String| !is_cgroup_file(name);
    if let Some(name) = wish.unified.keys().find(|name| bad(name)) {
        return Err(CriError::invalid(
            format!("{context}.unified"),
            format!("{name:?} is no file of a cgroup"),
        ));
    }
    Ok(ResourceSpec {
        cpu_quota_us,
        cpu_period_us,
        cpu_weight: weight(count(wish.cpu_shares)),
        memory_max,
        // As the kubelet does with cgroup v2: a container dies as a whole.
        oom_group: memory_max > 0 && !wish.unified.contains_key("memory.oom.group"),
        cpuset_cpus: wish.cpuset_cpus.clone(),
        cpuset_mems: wish.cpuset_mems.clone(),
        unified: wish.unified.clone().into_iter().collect(),
        ..ResourceSpec::default()
    })
}

/// The score by which the guest's OOM killer chooses.
pub(crate) fn oom_score_adj(
    context: &str,
    wish: &LinuxContainerResources,
) -> Result<i32, CriError> {
    let score = Some(wish.oom_score_adj).filter(|score| OOM_SCORES.contains(score));
    score
        .and_then(|score| i32::try_from(score).ok())
        .ok_or_else(|| {
            CriError::invalid(
                format!("{context}.oom_score_adj"),
                format!("{}; must be -1000 to 1000", wish.oom_score_adj),
            )
        })
}

/// cpu.weight for cpu.shares: 2 to 262144 onto 1 to 10000; 0 stays "not set".
fn weight(shares: u64) -> u64 {
    if shares == 0 {
        return 0;
    }
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn is_cgroup_file(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    name.contains('.')
        && name
            .split('.')
            .all(|part| !part.is_empty() && part.chars().all(word))
}

/// Refuses CPUs that the VM has not.
fn check_cpus(context: &str, list: &str, vcpus: u32) -> Result<(), CriError> {
    let parts = list.split(',').filter(|_| !list.is_empty());
    for part in parts {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first
            .trim()
            .parse::<u32>()
            .ok()
            .zip(last.trim().parse::<u32>().ok());
        let message = match range {
            Some((first, last)) if first <= last && last < vcpus => continue,
            Some((first, last)) if first <= last => {
                format!(
                    "{list:?}: the pod's VM has the CPUs 0 to {}, not the node's",
                    vcpus.saturating_sub(1)
                )
            }
            _ => format!("{list:?} is no list of CPUs such as 0-2,4"),
        };
        return Err(CriError::invalid(format!("{context}.cpuset_cpus"), message));
    }
    Ok(())
}

fn check_hugepages(context: &str, wish: &LinuxContainerResources) -> Result<(), CriError> {
    let asked = wish.hugepage_limits.iter().find(|limit| limit.limit > 0);
    match asked {
        None => Ok(()),
        Some(limit) => Err(CriError::invalid(
            format!("{context}.hugepage_limits"),
            format!(
                "{} bytes in pages of {}: guests have no huge pages to give; ask for memory instead",
                limit.limit, limit.page_size
            ),
        )),
    }
}

/// `current` with all that `change` sets.
pub(crate) fn merged(
    current: LinuxContainerResources,
    change: LinuxContainerResources,
) -> LinuxContainerResources {
    fn number(new: i64, old: i64) -> i64 {
        if new == 0 { old } else { new }
    }
    fn text(new: String, old: String) -> String {
        if new.is_empty() { old } else { new }
    }
    let mut unified = current.unified;
    unified.extend(change.unified);
    LinuxContainerResources {
        cpu_period: number(change.cpu_period, current.cpu_period),
        cpu_quota: number(change.cpu_quota, current.cpu_quota),
        cpu_shares: number(change.cpu_shares, current.cpu_shares),
        memory_limit_in_bytes: number(change.memory_limit_in_bytes, current.memory_limit_in_bytes),
        oom_score_adj: number(change.oom_score_adj, current.oom_score_adj),
        cpuset_cpus: text(change.cpuset_cpus, current.cpuset_cpus),
        cpuset_mems: text(change.cpuset_mems, current.cpuset_mems),
        hugepage_limits: if change.hugepage_limits.is_empty() {
            current.hugepage_limits
        } else {
            change.hugepage_limits
        },
        unified,
        memory_swap_limit_in_bytes: number(
            change.memory_swap_limit_in_bytes,
            current.memory_swap_limit_in_bytes,
        ),
    }
}

/// Limits as the text of [`UPDATED`].
pub(crate) fn keep(limits: &LinuxContainerResources) -> String {
    STANDARD.encode(limits.encode_to_vec())
}

/// The limits of a container as they are now.
pub(crate) fn in_force(container: &CriContainer) -> LinuxContainerResources {
    let updated = container.container.spec.annotations.get(UPDATED);
    let updated = updated
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|bytes| LinuxContainerResources::decode(bytes.as_slice()).ok());
    updated
        .or_else(|| container.config.linux.as_ref()?.resources.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri_api::v1::HugepageLimit;
    use proptest::prelude::*;

    fn convert(wish: &LinuxContainerResources) -> Result<ResourceSpec, CriError> {
        to_spec("r", wish, 4)
    }

    fn refused(wish: LinuxContainerResources) -> String {
        convert(&wish).unwrap_err().to_string()
    }

    #[test]
    fn limits_become_those_of_cgroup_v2() {
        let spec = convert(&LinuxContainerResources {
            cpu_quota: 25_000,
            cpu_shares: 256,
            memory_limit_in_bytes: 64 << 20,
            cpuset_cpus: "0-1,3".into(),
            ..LinuxContainerResources::default()
        })
        .unwrap();
        assert_eq!((spec.cpu_quota_us, spec.cpu_period_us), (25_000, 100_000));
        assert_eq!((spec.memory_max, spec.oom_group), (64 << 20, true));
        assert_eq!(spec.cpu_weight, 1 + 254 * 9999 / 262_142);
        assert_eq!(spec.cpuset_cpus, "0-1,3");
    }

    #[test]
    fn nothing_and_minus_one_limit_nothing() {
        let none = LinuxContainerResources {
            cpu_quota: -1,
            cpu_period: 100_000,
            memory_swap_limit_in_bytes: 5,
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            ..LinuxContainerResources::default()
        };
        assert_eq!(convert(&none).unwrap(), ResourceSpec::default());
        // As cgroup v1 tells it, with pages of 4 and of 64 KiB.
        for memory in [-1, 0x7fff_ffff_ffff_f000, 0x7fff_ffff_ffff_0000, i64::MAX] {
            let none = LinuxContainerResources {
                memory_limit_in_bytes: memory,
                ..LinuxContainerResources::default()
            };
            assert_eq!(convert(&none).unwrap(), ResourceSpec::default());
        }
    }

    #[test]
    fn what_the_guest_cannot_give_is_refused_by_field() {
        let default = LinuxContainerResources::default;
        for cpus in ["4", "0-4", "x", "2-1", "0,,1", "-"] {
            let wish = LinuxContainerResources {
                cpuset_cpus: cpus.into(),
                ..default()
            };
            assert!(refused(wish).starts_with("r.cpuset_cpus"), "{cpus}");
        }
        let wish = LinuxContainerResources {
            cpuset_mems: "1".into(),
            ..default()
        };
        assert!(refused(wish).starts_with("r.cpuset_mems"));
        let wish = LinuxContainerResources {
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 1,
            }],
            ..default()
        };
        assert!(refused(wish).starts_with("r.hugepage_limits"));
        for name in ["../x", "memory", "memory.", "a/b.c", ""] {
            let wish = LinuxContainerResources {
                unified: [(name.to_owned(), "1".to_owned())].into(),
                ..default()
            };
            assert!(refused(wish).starts_with("r.unified"), "{name}");
        }
        let wish = LinuxContainerResources {
            oom_score_adj: 1001,
            ..default()
        };
        assert!(oom_score_adj("r", &wish).is_err());
    }

    #[test]
    fn update_changes_what_it_names_only() {
        let current = LinuxContainerResources {
            cpu_shares: 100,
            memory_limit_in_bytes: 5,
            cpuset_cpus: "0".into(),
            ..LinuxContainerResources::default()
        };
        let change = LinuxContainerResources {
            memory_limit_in_bytes: 6,
            ..LinuxContainerResources::default()
        };
        let merged = merged(current.clone(), change);
        assert_eq!(merged.memory_limit_in_bytes, 6);
        assert_eq!((merged.cpu_shares, merged.cpuset_cpus), (100, "0".into()));
    }

    proptest! {
        #[test]
        fn any_shares_have_a_weight_the_kernel_takes(shares in 1u64..) {
            prop_assert!((1..=10_000).contains(&weight(shares)));
        }

        #[test]
        fn any_request_is_converted_or_refused(quota: i64, period: i64, memory: i64, cpus in "[0-9,-]{0,8}") {
            let wish = LinuxContainerResources {
                cpu_quota: quota,
                cpu_period: period,
                memory_limit_in_bytes: memory,
                cpuset_cpus: cpus,
                ..LinuxContainerResources::default()
            };
            if let Ok(spec) = convert(&wish) {
                prop_assert!(spec.cpu_quota_us == 0 || PERIODS_US.contains(&spec.cpu_period_us));
            }
        }
    }
}
