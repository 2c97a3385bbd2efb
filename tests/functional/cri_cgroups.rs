//! The CRI: the node's cgroup that a pod's VM is in.

use crate::{Test, shared};
use anyhow::ensure;
use cri_api::v1::{self, LinuxContainerResources, LinuxPodSandboxConfig};
use spherule_tests::cri::{Cri, container_config, sandbox_config};
use spherule_tests::{Daemon, DaemonOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(crate) const TESTS: &[Test] = &[
    ("vm_is_in_its_pods_cgroup_and_leaves_nothing_there", joined),
    ("vm_larger_than_its_pods_limit_stays_out", limited),
];

/// On hosts that have version 1 besides.
pub(crate) const UNIFIED: &[Test] = &[("vm_is_in_its_pods_cgroup_of_version_2", unified)];

const MOUNT: &str = "/sys/fs/cgroup";
const MIB: i64 = 1 << 20;

/// Why there is no hierarchy of version 2 besides those of version 1.
pub(crate) fn no_unified() -> Option<String> {
    let there = Path::new(MOUNT).join("unified/cgroup.procs").exists();
    (!there).then(|| "not a host with both versions of cgroups".to_owned())
}

/// A cgroup as a kubelet makes one for a pod; it goes with the test.
struct PodGroup {
    name: String,
    roots: Vec<PathBuf>,
}

impl PodGroup {
    fn new(name: &str) -> anyhow::Result<Self> {
        let mount = Path::new(MOUNT);
        let roots = if mount.join("cgroup.controllers").exists() {
            vec![mount.to_owned()]
        } else {
            // Some hosts have two of them in one hierarchy.
            let controllers = ["memory", "cpu", "cpuacct", "pids"];
            let roots = controllers.map(|c| mount.join(c).canonicalize());
            let roots: BTreeSet<_> = roots.into_iter().filter_map(Result::ok).collect();
            roots.into_iter().collect()
        };
        Self::at(name, roots)
    }

    fn at(name: &str, roots: Vec<PathBuf>) -> anyhow::Result<Self> {
        let name = format!("spherule-tests-{}-{name}/pod", std::process::id());
        let group = Self { name, roots };
        for dir in group.dirs() {
            std::fs::create_dir_all(&dir)?;
        }
        Ok(group)
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.roots.iter().map(|root| root.join(&self.name))
    }

    fn limit_memory(&self, bytes: i64) -> anyhow::Result<()> {
        for dir in self.dirs() {
            // The controller of version 2 is enabled from above, the root first.
            let above: Vec<_> = dir.ancestors().skip(1).take(2).collect();
            for above in above.into_iter().rev() {
                let _ = std::fs::write(above.join("cgroup.subtree_control"), "+memory");
            }
        }
        let files = ["memory.max", "memory.limit_in_bytes"];
        let limit = self.dirs().flat_map(|dir| files.map(|file| dir.join(file)));
        let Some(limit) = limit.into_iter().find(|path| path.exists()) else {
            anyhow::bail!("{} has no limit of memory", self.name);
        };
        Ok(std::fs::write(limit, bytes.to_string())?)
    }

    /// A pod that is to be in it.
    fn config(&self, name: &str, logs: &Path) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.name),
                ..LinuxPodSandboxConfig::default()
            }),
            ..sandbox_config(name, logs)
        }
    }

    /// Whether all processes of a sandbox's VM are in it, or else none.
    fn holds(&self, cri: &Cri, sandbox: &str) -> anyhow::Result<bool> {
        let vmm = cri.vmm(sandbox)?.as_raw_pid();
        let children = format!("/proc/{vmm}/task/{vmm}/children");
        let children = std::fs::read_to_string(children)?;
        let pids = children.split_whitespace().map(str::to_owned);
        let mut held = Vec::new();
        for pid in pids.chain([vmm.to_string()]) {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let here = format!("/{}/spherule-{sandbox}\n", self.name);
            held.push(groups.matches(&here).count());
        }
        let all = held.iter().all(|n| *n == self.roots.len());
        ensure!(all || held.iter().all(|n| *n == 0), "in some: {held:?}");
        Ok(all)
    }

    fn is_empty(&self) -> anyhow::Result<()> {
        for dir in self.dirs() {
            for entry in std::fs::read_dir(&dir)? {
                let entry = entry?;
                ensure!(!entry.file_type()?.is_dir(), "left: {:?}", entry.path());
            }
        }
        Ok(())
    }
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        for dir in self.dirs() {
            for dir in dir.ancestors().take(2) {
                let _ = std::fs::remove_dir(dir);
            }
        }
    }
}

fn memory(bytes: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        ..LinuxContainerResources::default()
    }
}

fn joined() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let group = PodGroup::new("joined")?;
    let logs = tempfile::tempdir()?;
    let cri = Cri::connect(&daemon)?;
    let config = group.config("cgroup-joined", logs.path());
    let sandbox = cri.run(&config)?;
    let container = cri.create(&sandbox, container_config("c", "sleep 100000"), &config)?;
    cri.start(&container)?;
    ensure!(group.holds(&cri, &sandbox)?, "elsewhere");
    // The kubelet will limit the pod's group next, and the VM cannot shrink.
    let request = v1::UpdateContainerResourcesRequest {
        container_id: container,
        linux: Some(memory(64 * MIB)),
        ..v1::UpdateContainerResourcesRequest::default()
    };
    cri.wait(cri.runtime.clone().update_container_resources(request))?;
    ensure!(!group.holds(&cri, &sandbox)?, "still there");
    cri.stop_pod(&sandbox)?;
    group.is_empty()?;
    Ok(cri.remove_pod(&sandbox)?)
}

fn limited() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let group = PodGroup::new("limited")?;
    let logs = tempfile::tempdir()?;
    let cri = Cri::connect(&daemon)?;
    group.limit_memory(416 * MIB)?;
    let mut config = group.config("cgroup-limited", logs.path());
    let sandbox = cri.run(&config)?;
    ensure!(!group.holds(&cri, &sandbox)?, "its 512 MiB are too many");
    cri.stop_pod(&sandbox)?;
    cri.remove_pod(&sandbox)?;

    // A pod overhead makes room for the VM, which is then no larger than it must be.
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(memory(16 * MIB));
    linux.overhead = Some(memory(400 * MIB));
    if let Some(metadata) = &mut config.metadata {
        metadata.attempt = 1;
    }
    let sandbox = cri.run(&config)?;
    ensure!(group.holds(&cri, &sandbox)?, "elsewhere");
    let container = cri.create(&sandbox, container_config("c", "sleep 100000"), &config)?;
    cri.start(&container)?;
    let total = cri.exec(
        &container,
        &["awk", "/MemTotal/{print $2}", "/proc/meminfo"],
    )?;
    let total: i64 = String::from_utf8(total.stdout)?.trim().parse()?;
    ensure!(total < 400 << 10, "{total} KiB");
    cri.stop_pod(&sandbox)?;
    group.is_empty()?;
    Ok(cri.remove_pod(&sandbox)?)
}

fn unified() -> anyhow::Result<()> {
    let daemon = Daemon::with(DaemonOptions {
        prepare: Some(format!("mount --bind {MOUNT}/unified {MOUNT}")),
        ..DaemonOptions::default()
    })?;
    let group = PodGroup::at("unified", vec![Path::new(MOUNT).join("unified")])?;
    let logs = tempfile::tempdir()?;
    let cri = Cri::connect(&daemon)?;
    let sandbox = cri.run(&group.config("cgroup-unified", logs.path()))?;
    ensure!(group.holds(&cri, &sandbox)?, "elsewhere");
    cri.stop_pod(&sandbox)?;
    group.is_empty()?;
    Ok(cri.remove_pod(&sandbox)?)
}
