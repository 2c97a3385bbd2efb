//! The CRI: limits that change while it runs, and guests that do not answer.

use crate::{Test, shared};
use anyhow::ensure;
use cri_api::v1::{self, LinuxContainerResources};
use rustix::process::{Signal, kill_process};
use spherule_tests::Daemon;
use spherule_tests::cri::{Cri, container_config, image, refused, sandbox_config};
use tempfile::TempDir;
use tonic::{Code, Status};

pub(crate) const TESTS: &[Test] = &[
    ("limits_of_a_pod_change_while_it_runs", of_pod),
    ("limits_of_a_container_change_while_it_runs", of_container),
    ("hung_guest_is_removed_with_its_sandbox", hung),
];

const MIB: i64 = 1 << 20;

/// A pod with a container that waits.
struct Pod {
    cri: Cri,
    config: v1::PodSandboxConfig,
    sandbox: String,
    container: String,
    _logs: TempDir,
}

impl Pod {
    fn new(name: &str, daemon: &Daemon) -> anyhow::Result<Self> {
        let logs = tempfile::tempdir()?;
        let cri = Cri::connect(daemon)?;
        let config = sandbox_config(name, logs.path());
        let sandbox = cri.run(&config)?;
        let container = cri.create(&sandbox, container_config("c", "sleep 100000"), &config)?;
        cri.start(&container)?;
        Ok(Self {
            cri,
            config,
            sandbox,
            container,
            _logs: logs,
        })
    }

    fn update_pod(&self, resources: LinuxContainerResources) -> Result<(), Status> {
        let request = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: self.sandbox.clone(),
            overhead: None,
            resources: Some(resources),
        };
        let mut runtime = self.cri.runtime.clone();
        let call = runtime.update_pod_sandbox_resources(request);
        self.cri.wait(call).map(drop)
    }

    fn update(&self, resources: LinuxContainerResources) -> Result<(), Status> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: self.container.clone(),
            linux: Some(resources),
            ..v1::UpdateContainerResourcesRequest::default()
        };
        let mut runtime = self.cri.runtime.clone();
        self.cri
            .wait(runtime.update_container_resources(request))
            .map(drop)
    }

    /// The exit code of a command that uses 96 MiB.
    fn use_memory(&self) -> Result<i32, Status> {
        let command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"];
        Ok(self.cri.exec(&self.container, &command)?.exit_code)
    }

    /// A control file of the container's cgroup.
    fn control(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/sys/fs/cgroup/{file}");
        let done = self.cri.exec(&self.container, &["cat", &path])?;
        Ok(String::from_utf8(done.stdout)?.trim().to_owned())
    }
}

fn memory(bytes: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        ..LinuxContainerResources::default()
    }
}

fn cpu(cpu_quota: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_quota,
        cpu_period: 100_000,
        ..LinuxContainerResources::default()
    }
}

fn hugepages() -> LinuxContainerResources {
    LinuxContainerResources {
        hugepage_limits: vec![v1::HugepageLimit {
            page_size: "2MB".into(),
            limit: 2 << 20,
        }],
        ..LinuxContainerResources::default()
    }
}

fn cpus(list: &str) -> LinuxContainerResources {
    LinuxContainerResources {
        cpuset_cpus: list.to_owned(),
        ..LinuxContainerResources::default()
    }
}

fn of_pod() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let pod = Pod::new("cri-pod-limits", &daemon)?;
    ensure!(pod.use_memory()? == 0);
    pod.update_pod(memory(48 * MIB))?;
    ensure!(pod.use_memory()? == 137, "the pod's limit holds");
    // What is not named stays.
    pod.update_pod(cpu(50_000))?;
    ensure!(pod.use_memory()? == 137, "the pod's limit still holds");
    pod.update_pod(memory(-1))?;
    ensure!(pod.use_memory()? == 0, "the limit is no more");

    let beyond = Code::FailedPrecondition;
    let field = "resources.memory_limit_in_bytes";
    refused(
        pod.update_pod(memory(100 << 30)),
        beyond,
        &[field, "MiB", "recreate the pod"],
    )?;
    let words = ["resources.cpu_quota", "64 CPUs", "recreate the pod"];
    refused(pod.update_pod(cpu(6_400_000)), beyond, &words)?;
    for (wish, field) in [
        (hugepages(), "resources.hugepage_limits"),
        (cpus("63"), "resources.cpuset_cpus"),
    ] {
        refused(pod.update_pod(wish), Code::InvalidArgument, &[field])?;
    }
    pod.cri.stop_pod(&pod.sandbox)?;
    refused(pod.update_pod(cpu(50_000)), beyond, &["NotReady"])?;
    pod.cri.remove_pod(&pod.sandbox)?;
    refused(pod.update_pod(cpu(50_000)), Code::NotFound, &[&pod.sandbox])
}

fn of_container() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let pod = Pod::new("cri-limits", &daemon)?;
    pod.update(LinuxContainerResources {
        cpuset_cpus: "0".into(),
        unified: [("pids.max".to_owned(), "50".to_owned())].into(),
        ..cpu(50_000)
    })?;
    pod.update(memory(64 * MIB))?;
    for (file, expected) in [
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "50"),
        ("memory.max", "67108864"),
    ] {
        let found = pod.control(file)?;
        ensure!(found == expected, "{file}: {found}");
    }
    let unified = |name: &str| LinuxContainerResources {
        unified: [(name.to_owned(), "1".to_owned())].into(),
        ..LinuxContainerResources::default()
    };
    for (wish, word) in [
        (hugepages(), "hugepage_limits"),
        (cpus("63"), "cpuset_cpus"),
        (unified("../x"), "unified"),
        // Only the guest knows that there is no such thing.
        (unified("device.max"), "unified"),
        (unified("cpu.nothing"), "cpu.nothing"),
    ] {
        refused(pod.update(wish), Code::InvalidArgument, &[word])?;
    }
    for (wish, words) in [
        (memory(100 << 30), ["linux.memory_limit_in_bytes", "MiB"]),
        (cpu(6_400_000), ["linux.cpu_quota", "64 CPUs"]),
    ] {
        let words = [words[0], words[1], "recreate the pod"];
        refused(pod.update(wish), Code::FailedPrecondition, &words)?;
    }
    // A refusal changes nothing.
    ensure!(pod.control("pids.max")? == "50" && pod.control("memory.max")? == "67108864");

    // What else only the guest can refuse.
    let mut config = container_config("sub", "true");
    config.mounts = vec![v1::Mount {
        container_path: "/image".into(),
        image: Some(image(spherule_tests::IMAGE)),
        image_sub_path: "no/such".into(),
        readonly: true,
        ..v1::Mount::default()
    }];
    let made = pod.cri.create(&pod.sandbox, config, &pod.config);
    refused(made, Code::InvalidArgument, &["no/such"])?;
    pod.cri.remove_pod(&pod.sandbox)?;
    Ok(())
}

fn hung() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let pod = Pod::new("cri-hung", &daemon)?;
    kill_process(pod.cri.vmm(&pod.sandbox)?, Signal::STOP)?;
    // Removals do not wait for what cannot answer, and wait for one another.
    pod.cri.stop_pod(&pod.sandbox)?;
    ensure!(pod.cri.sandbox(&pod.sandbox)?.state() == v1::PodSandboxState::SandboxNotready);
    pod.cri.remove(&pod.container)?;
    pod.cri.remove_pod(&pod.sandbox)?;
    refused(
        pod.cri.sandbox(&pod.sandbox),
        Code::NotFound,
        &[&pod.sandbox],
    )?;
    ensure!(
        std::fs::read_dir(daemon.root().join("pods"))?
            .next()
            .is_none()
    );
    Ok(())
}
