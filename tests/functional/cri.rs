//! The CRI: sandboxes and containers from their making to their removal.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use cri_api::v1::{self, ContainerState, PodSandboxState};
use spherule_tests::cri::{Cri, container_config, refused, sandbox_config};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    ("container_goes_through_its_states_and_logs", life),
    ("container_that_cannot_start_says_why", never_started),
    ("lists_select_by_id_state_and_labels", filters),
    (
        "stops_and_removals_repeat_and_names_are_reserved",
        idempotence,
    ),
    ("exec_sync_returns_output_and_code", exec_sync),
    ("paths_are_masked_and_read_only", path_rules),
    ("figures_are_those_of_the_guest", figures),
    ("figures_have_a_metric_a_descriptor", metrics),
    ("own_commands_show_cri_pods", own_commands),
];

/// A sandbox of a test's own on the shared daemon.
struct Pod {
    cri: Cri,
    config: v1::PodSandboxConfig,
    id: String,
    _logs: tempfile::TempDir,
}

impl Pod {
    fn new(name: &str) -> anyhow::Result<Self> {
        let cri = Cri::connect(&*shared::daemon()?)?;
        let logs = tempfile::tempdir()?;
        let config = sandbox_config(name, logs.path());
        let id = cri.run(&config)?;
        Ok(Self {
            cri,
            config,
            id,
            _logs: logs,
        })
    }

    fn create(&self, name: &str, script: &str) -> anyhow::Result<String> {
        let config = container_config(name, script);
        Ok(self.cri.create(&self.id, config, &self.config)?)
    }

    fn start(&self, name: &str, script: &str) -> anyhow::Result<String> {
        let id = self.create(name, script)?;
        self.cri.start(&id)?;
        Ok(id)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.cri.remove_pod(&self.id);
    }
}

fn life() -> anyhow::Result<()> {
    let pod = Pod::new("cri-life")?;
    let sandbox = pod.cri.sandbox(&pod.id)?;
    ensure!(sandbox.state() == PodSandboxState::SandboxReady);
    ensure!(sandbox.metadata == pod.config.metadata && sandbox.labels == pod.config.labels);
    ensure!(sandbox.annotations == pod.config.annotations && sandbox.created_at > 0);

    let script = "echo out; echo err >&2; printf part; exit 3";
    let id = pod.create("c", script)?;
    let created = pod.cri.container(&id)?;
    ensure!(created.state() == ContainerState::ContainerCreated && created.started_at == 0);
    pod.cri.start(&id)?;
    let ended = pod.cri.ended(&id)?;
    ensure!(
        (ended.exit_code, ended.reason.as_str()) == (3, "Error"),
        "{ended:?}"
    );
    ensure!(ended.created_at <= ended.started_at && ended.started_at <= ended.finished_at);
    ensure!(ended.image_id.starts_with("sha256:"), "{ended:?}");
    let log = std::fs::read_to_string(&ended.log_path).context(ended.log_path.clone())?;
    for line in [" stdout F out\n", " stderr F err\n", " stdout P part\n"] {
        ensure!(log.contains(line), "no {line:?} in {log}");
    }

    // The sandbox goes on without a running container, and takes another.
    pod.cri.remove(&id)?;
    refused(pod.cri.container(&id), Code::NotFound, &[&id])?;
    let second = pod.start("c2", "trap '' TERM; while :; do sleep 1; done")?;
    pod.cri.exec(&second, &["true"])?;
    pod.cri.stop(&second, 0)?;
    ensure!(pod.cri.container(&second)?.exit_code == 137);
    pod.cri.stop_pod(&pod.id)?;
    let stopped = pod.cri.sandbox(&pod.id)?;
    ensure!(stopped.state() == PodSandboxState::SandboxNotready);
    refused(
        pod.create("c3", "true").map_err(|e| match e.downcast() {
            Ok(status) => status,
            Err(other) => tonic::Status::unknown(other.to_string()),
        }),
        Code::FailedPrecondition,
        &[&pod.id],
    )?;
    pod.cri.remove_pod(&pod.id)?;
    refused(pod.cri.sandbox(&pod.id), Code::NotFound, &[&pod.id])
}

fn never_started() -> anyhow::Result<()> {
    let pod = Pod::new("cri-never")?;
    let mut config = container_config("c", "");
    config.command = vec!["/no/such".into()];
    let id = pod.cri.create(&pod.id, config, &pod.config)?;
    refused(pod.cri.start(&id), Code::InvalidArgument, &["/no/such"])?;
    // A kubelet that asks later learns no less.
    let ended = pod.cri.ended(&id)?;
    ensure!(
        (ended.exit_code, ended.reason.as_str()) == (128, "StartError"),
        "{ended:?}"
    );
    ensure!(ended.message.contains("/no/such"), "{ended:?}");
    ensure!(!ended.message.contains("log"), "{ended:?}");
    Ok(())
}

/// What a request names is hidden or read-only, whatever it is and whoever looks.
fn path_rules() -> anyhow::Result<()> {
    let pod = Pod::new("cri-paths")?;
    let mut config = container_config("c", "sleep 1000");
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    config.linux = Some(v1::LinuxContainerConfig {
        security_context: Some(v1::LinuxContainerSecurityContext {
            masked_paths: paths(&["/etc", "/proc/uptime", "/not/there"]),
            readonly_paths: paths(&["/bin", "/proc/sys"]),
            ..v1::LinuxContainerSecurityContext::default()
        }),
        ..v1::LinuxContainerConfig::default()
    });
    let id = pod.cri.create(&pod.id, config, &pod.config)?;
    pod.cri.start(&id)?;
    let seen = pod
        .cri
        .exec(&id, &["sh", "-c", "ls -A /etc; cat /proc/uptime"])?;
    ensure!(seen.exit_code == 0 && seen.stdout.is_empty(), "{seen:?}");
    for write in ["touch /bin/new", "echo x > /proc/sys/kernel/domainname"] {
        let refused = pod.cri.exec(&id, &["sh", "-c", write])?;
        let told = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.exit_code != 0, "{write} worked");
        ensure!(told.contains("Read-only file system"), "{write}: {told}");
    }
    Ok(())
}

fn filters() -> anyhow::Result<()> {
    let pod = Pod::new("cri-filters")?;
    let runs = pod.start("runs", "sleep 1000")?;
    let made = pod.create("made", "true")?;
    let list = |filter: v1::ContainerFilter| -> anyhow::Result<Vec<String>> {
        let filter = Some(v1::ContainerFilter {
            pod_sandbox_id: pod.id.clone(),
            ..filter
        });
        let request = v1::ListContainersRequest { filter };
        let answer = pod
            .cri
            .wait(pod.cri.runtime.clone().list_containers(request))?;
        let mut ids: Vec<_> = answer.containers.into_iter().map(|c| c.id).collect();
        ids.sort();
        Ok(ids)
    };
    let state = |state: ContainerState| v1::ContainerFilter {
        state: Some(v1::ContainerStateValue {
            state: state.into(),
        }),
        ..v1::ContainerFilter::default()
    };
    let mut both = vec![runs.clone(), made.clone()];
    both.sort();
    ensure!(list(v1::ContainerFilter::default())? == both);
    ensure!(list(state(ContainerState::ContainerRunning))? == [runs.as_str()]);
    ensure!(list(state(ContainerState::ContainerCreated))? == [made.as_str()]);
    ensure!(list(state(ContainerState::ContainerExited))?.is_empty());
    let by_label = v1::ContainerFilter {
        label_selector: [("container".to_owned(), "made".to_owned())].into(),
        ..v1::ContainerFilter::default()
    };
    ensure!(list(by_label)? == [made]);
    let by_prefix = v1::ContainerFilter {
        id: runs[..12].to_owned(),
        ..v1::ContainerFilter::default()
    };
    ensure!(list(by_prefix)? == [runs]);

    let pods = |selector: &str| -> anyhow::Result<usize> {
        let filter = Some(v1::PodSandboxFilter {
            label_selector: [("test".to_owned(), selector.to_owned())].into(),
            ..v1::PodSandboxFilter::default()
        });
        let request = v1::ListPodSandboxRequest { filter };
        let answer = pod
            .cri
            .wait(pod.cri.runtime.clone().list_pod_sandbox(request))?;
        Ok(answer.items.len())
    };
    ensure!((pods("cri-filters")?, pods("none")?) == (1, 0));
    Ok(())
}

fn idempotence() -> anyhow::Result<()> {
    let pod = Pod::new("cri-twice")?;
    // The same name again is the same sandbox or a refusal, never a second one.
    match pod.cri.run(&pod.config) {
        Ok(id) => ensure!(id == pod.id),
        Err(status) => ensure!(status.code() == Code::AlreadyExists, "{status:?}"),
    }
    let id = pod.start("c", "sleep 1000")?;
    match pod.create("c", "true") {
        Ok(second) => ensure!(second == id),
        Err(error) => ensure!(format!("{error:#}").contains(&id), "{error:#}"),
    }
    for _ in 0..2 {
        pod.cri.stop(&id, 0)?;
    }
    for _ in 0..2 {
        pod.cri.remove(&id)?;
    }
    for _ in 0..2 {
        pod.cri.stop_pod(&pod.id)?;
    }
    for _ in 0..2 {
        pod.cri.remove_pod(&pod.id)?;
    }
    pod.cri.stop("00000000000000000000000000000000", 0)?;
    pod.cri.stop_pod("00000000000000000000000000000000")?;
    Ok(())
}

fn exec_sync() -> anyhow::Result<()> {
    let pod = Pod::new("cri-exec")?;
    let id = pod.start("c", "sleep 1000")?;
    let answer = pod
        .cri
        .exec(&id, &["sh", "-c", "echo a; echo b >&2; exit 7"])?;
    ensure!(answer.stdout == b"a\n" && answer.stderr == b"b\n" && answer.exit_code == 7);
    let request = v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sleep", "1000"].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let late = pod.cri.wait(pod.cri.runtime.clone().exec_sync(request));
    refused(late, Code::DeadlineExceeded, &[])?;
    let made = pod.create("made", "true")?;
    let early = pod.cri.exec(&made, &["true"]);
    refused(early, Code::FailedPrecondition, &[&made])
}

fn figures() -> anyhow::Result<()> {
    let pod = Pod::new("cri-figures")?;
    let busy = "dd if=/dev/zero of=/data bs=1M count=3 2>/dev/null; echo ready; \
                while true; do :; done";
    let id = pod.start("busy", busy)?;
    let idle = pod.create("idle", "true")?;
    let wanted = |id: &str| v1::ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let value = |v: &Option<v1::UInt64Value>| v.as_ref().map_or(0, |v| v.value);
    // Until it has written its file and run for a while.
    let stats = loop {
        let answer = pod
            .cri
            .wait(pod.cri.runtime.clone().container_stats(wanted(&id)))?;
        let stats = answer.stats.context("no stats")?;
        let layer = stats.writable_layer.as_ref().context("no layer")?;
        let cpu = stats.cpu.as_ref().context("no cpu")?;
        if value(&layer.used_bytes) >= 3 << 20 && value(&cpu.usage_core_nano_seconds) > 0 {
            break stats;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    let attributes = stats.attributes.as_ref().context("no attributes")?;
    ensure!(attributes.id == id && attributes.labels["container"] == "busy");
    let memory = stats.memory.as_ref().context("no memory")?;
    ensure!(
        memory.timestamp > 0 && value(&memory.usage_bytes) > 0,
        "{memory:?}"
    );
    ensure!(
        value(&memory.working_set_bytes) <= value(&memory.usage_bytes),
        "{memory:?}"
    );
    let early = pod
        .cri
        .wait(pod.cri.runtime.clone().container_stats(wanted(&idle)));
    refused(early, Code::FailedPrecondition, &[&idle])?;

    let filter = Some(v1::ContainerStatsFilter {
        pod_sandbox_id: pod.id.clone(),
        ..v1::ContainerStatsFilter::default()
    });
    let request = v1::ListContainerStatsRequest { filter };
    let listed = pod
        .cri
        .wait(pod.cri.runtime.clone().list_container_stats(request))?;
    let ids: Vec<_> = listed
        .stats
        .iter()
        .filter_map(|s| Some(s.attributes.as_ref()?.id.clone()))
        .collect();
    ensure!(ids == [id.clone()], "{ids:?}");

    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let answer = pod
        .cri
        .wait(pod.cri.runtime.clone().pod_sandbox_stats(request))?;
    let linux = answer.stats.and_then(|s| s.linux).context("no pod stats")?;
    // A VM costs more than its containers.
    let pod_memory = linux.memory.context("no pod memory")?;
    ensure!(value(&pod_memory.usage_bytes) > value(&memory.usage_bytes));
    ensure!(linux.containers.len() == 1 && linux.network.is_some());
    ensure!(value(&linux.process.context("no processes")?.process_count) >= 1);
    Ok(())
}

fn metrics() -> anyhow::Result<()> {
    let pod = Pod::new("cri-metrics")?;
    let id = pod.start("c", "sleep 1000")?;
    let request = v1::ListMetricDescriptorsRequest {};
    let answer = pod
        .cri
        .wait(pod.cri.runtime.clone().list_metric_descriptors(request))?;
    let keys = |name: &str| {
        let found = answer.descriptors.iter().find(|d| d.name == name);
        found.map(|d| d.label_keys.len())
    };
    let request = v1::ListPodSandboxMetricsRequest {};
    let listed = pod
        .cri
        .wait(pod.cri.runtime.clone().list_pod_sandbox_metrics(request))?;
    let found = listed
        .pod_metrics
        .iter()
        .find(|p| p.pod_sandbox_id == pod.id);
    let found = found.context("no metrics of the pod")?;
    let of_container = found
        .container_metrics
        .iter()
        .find(|c| c.container_id == id);
    let of_container = of_container.context("no metrics of the container")?;
    for metric in found.metrics.iter().chain(&of_container.metrics) {
        ensure!(
            keys(&metric.name) == Some(metric.label_values.len()),
            "{metric:?}"
        );
    }
    let names = |name: &str| of_container.metrics.iter().any(|m| m.name == name);
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_processes",
        "container_start_time_seconds",
    ] {
        ensure!(names(name), "no {name}");
    }
    Ok(())
}

fn own_commands() -> anyhow::Result<()> {
    let pod = Pod::new("cri-shown")?;
    let id = pod.start("c", "echo hello")?;
    pod.cri.ended(&id)?;
    let daemon = shared::daemon()?;
    let shown = daemon.cli(["ps"])?.ok()?;
    ensure!(shown.contains("cri-shown"), "{shown}");
    let json = daemon.inspect("tests/cri-shown")?;
    ensure!(
        json["id"] == pod.id && json["containers"][0]["id"] == id,
        "{json:#}"
    );
    let logs = daemon.cli(["logs", &pod.id])?.ok()?;
    ensure!(logs == "hello\n", "{logs}");
    daemon.cli(["rm", &pod.id])?.refused(&["cri-shown"])?;
    daemon.cli(["stop", &pod.id])?.ok()?;
    ensure!(pod.cri.sandbox(&pod.id)?.state() == PodSandboxState::SandboxNotready);
    daemon.cli(["rm", &pod.id])?.ok()?;
    refused(pod.cri.sandbox(&pod.id), Code::NotFound, &[])
}
