//! Pods that the daemon runs for others: sandboxes made by a CRI client, which the
//! engine does not know. Shown, stopped and removed as the engine's own are.

use crate::{convert, status};
use pod_api::v1;
use pod_engine::{EngineError, LogFile, LogFiles};
use sandbox::{Container, ContainerState, NotReadyReason, Sandbox, SandboxState, Sandboxes};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Status;

/// Grace of a stop that names none, as Kubernetes' own default.
const GRACE: Duration = Duration::from_secs(30);

/// Those sandboxes.
#[derive(Debug, Clone)]
pub(crate) struct Others(Sandboxes);

impl Others {
    pub(crate) fn new(sandboxes: Sandboxes) -> Self {
        Self(sandboxes)
    }

    /// The pods whose labels have all of these, the oldest first.
    pub(crate) fn list(&self, selector: &BTreeMap<String, String>) -> Vec<v1::Pod> {
        let mut found = self.sandboxes();
        found.retain(|sandbox| {
            let labels = &sandbox.spec.labels;
            selector.iter().all(|(k, v)| labels.get(k) == Some(v))
        });
        found.sort_by_key(|sandbox| sandbox.created_at_ns);
        found.iter().map(|sandbox| self.pod(sandbox)).collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.sandboxes().len()
    }

    /// One by id, unique prefix of it, name or namespace/name; of several with one
    /// name the newest.
    pub(crate) fn find(&self, name: &str) -> Result<v1::Pod, EngineError> {
        let all = self.sandboxes();
        let is_named = |sandbox: &&Sandbox| {
            let spec = &sandbox.spec;
            match name.split_once('/') {
                Some((namespace, name)) => spec.namespace == namespace && spec.name == name,
                None => spec.namespace == "default" && spec.name == name,
            }
        };
        let exact = all.iter().find(|sandbox| sandbox.spec.id == name);
        let named = || {
            let named = all.iter().filter(is_named);
            named.max_by_key(|sandbox| sandbox.created_at_ns)
        };
        if let Some(found) = exact.or_else(named) {
            return Ok(self.pod(found));
        }
        let mut begun = all
            .iter()
            .filter(|sandbox| sandbox.spec.id.starts_with(name));
        match (begun.next(), begun.count()) {
            (Some(found), 0) if !name.is_empty() => Ok(self.pod(found)),
            (Some(_), more) if !name.is_empty() => Err(EngineError::Ambiguous {
                prefix: name.to_owned(),
                count: more + 1,
            }),
            _ => Err(EngineError::NoSuchPod(name.to_owned())),
        }
    }

    /// Ends the containers with grace, then the VM.
    pub(crate) async fn stop(
        &self,
        name: &str,
        grace: Option<Duration>,
    ) -> Result<v1::Pod, Status> {
        let pod = self.find(name).map_err(|e| status::of_engine(&e))?;
        let grace = grace.unwrap_or(GRACE);
        let mut stops = JoinSet::new();
        for container in self.0.containers(&pod.id) {
            let sandboxes = self.0.clone();
            stops.spawn(async move {
                let stopped = sandboxes.stop_container(&container.id, grace, None);
                if let Err(error) = stopped.await {
                    tracing::warn!(container = container.id, %error, "it ends with its VM");
                }
            });
        }
        stops.join_all().await;
        let stopped = self.0.stop_sandbox(&pod.id).await;
        stopped.map_err(|e| status::of_sandbox(&e))?;
        self.find(&pod.id).map_err(|e| status::of_engine(&e))
    }

    /// Removes all of it; a running one only by `force`.
    pub(crate) async fn remove(&self, name: &str, force: bool) -> Result<(), Status> {
        let pod = match self.find(name) {
            Err(EngineError::NoSuchPod(_)) => return Ok(()),
            found => found.map_err(|e| status::of_engine(&e))?,
        };
        if !force && matches!(pod.phase(), v1::Phase::Pending | v1::Phase::Running) {
            let name = format!("{}/{}", pod.namespace, pod.name);
            return Err(status::of_engine(&EngineError::StillRunning(name)));
        }
        let removed = self.0.remove_sandbox(&pod.id).await;
        removed.map_err(|e| status::of_sandbox(&e))
    }

    /// Where the output of a container lies: a file an attempt. What its caller has
    /// rotated away is not among it: that is the caller's to keep and to remove, and
    /// kubectl shows the present file only, too.
    pub(crate) fn log_files(&self, pod: &str, container: &str) -> Option<LogFiles> {
        let sandbox = self.0.sandbox(pod).ok()?;
        let attempts = self.attempts(&sandbox).remove(container)?;
        let over = |container: &Container| {
            sandbox.state != SandboxState::Ready || container.exit.is_some()
        };
        let files: Vec<_> = attempts
            .iter()
            .map(|container| LogFile {
                path: container.spec.log_path.clone(),
                complete: over(container),
            })
            .collect();
        let finished = files.iter().all(|file| file.complete);
        Some(LogFiles { files, finished })
    }

    /// The engine's own have no data of another caller's.
    fn sandboxes(&self) -> Vec<Sandbox> {
        let mut all = self.0.sandboxes();
        all.retain(|sandbox| !sandbox.spec.caller_data.is_empty());
        all
    }

    /// The containers by name, the attempts of each in order.
    fn attempts(&self, sandbox: &Sandbox) -> BTreeMap<String, Vec<Container>> {
        let mut containers = self.0.containers(&sandbox.spec.id);
        containers.sort_by_key(|container| container.spec.attempt);
        let mut attempts = BTreeMap::<String, Vec<Container>>::new();
        for container in containers {
            let name = container.spec.name.clone();
            attempts.entry(name).or_default().push(container);
        }
        attempts
    }

    fn pod(&self, sandbox: &Sandbox) -> v1::Pod {
        let spec = &sandbox.spec;
        let (phase, reason, message) = phase(sandbox);
        let newest = self.attempts(sandbox).into_values();
        v1::Pod {
            id: spec.id.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            labels: spec.labels.clone().into_iter().collect(),
            annotations: spec.annotations.clone().into_iter().collect(),
            phase: phase.into(),
            reason,
            message,
            created_at_ns: sandbox.created_at_ns,
            started_at_ns: sandbox.ready_at_ns,
            finished_at_ns: sandbox.finished_at_ns,
            engine: convert::engine(Some(sandbox.engine)).into(),
            init_containers: Vec::new(),
            containers: newest
                .filter_map(|mut attempts| Some(container(&attempts.pop()?)))
                .collect(),
            ephemeral_containers: Vec::new(),
            vm: Some(v1::VmInfo {
                vcpus: spec.vcpus,
                memory_mib: spec.memory_mib,
                vmm_pid: sandbox.vmm_pid().unwrap_or(0),
            }),
            stages: sandbox.stages.iter().map(stage).collect(),
            manifest: String::new(),
            pod_ips: sandbox.pod_ips.iter().map(ToString::to_string).collect(),
        }
    }
}

fn stage(of: &sandbox::Stage) -> v1::Stage {
    v1::Stage {
        name: of.name.clone(),
        started_at_ns: of.started_at_ns,
        duration_ns: of.duration_ns,
    }
}

fn phase(sandbox: &Sandbox) -> (v1::Phase, String, String) {
    let plain = |phase| (phase, String::new(), String::new());
    match (sandbox.state, &sandbox.reason) {
        (SandboxState::Creating, _) => plain(v1::Phase::Pending),
        (SandboxState::Ready, _) => plain(v1::Phase::Running),
        (_, Some(NotReadyReason::VmDied(cause))) => {
            (v1::Phase::Failed, "VmDied".to_owned(), cause.clone())
        }
        _ => (v1::Phase::Succeeded, "Stopped".to_owned(), String::new()),
    }
}

fn container(of: &Container) -> v1::Container {
    use v1::container::State;
    let exit = of.exit.clone().unwrap_or_default();
    let (state, reason) = match (of.state, &of.exit) {
        (_, Some(exit)) => (State::Terminated, exit_reason(exit)),
        (ContainerState::Running, None) => (State::Running, ""),
        (_, None) => (State::Waiting, "ContainerCreated"),
    };
    v1::Container {
        name: of.spec.name.clone(),
        id: of.id.clone(),
        image: of.spec.image.clone(),
        image_id: of.image_id.clone(),
        state: state.into(),
        reason: reason.to_owned(),
        message: exit.lost.unwrap_or_default(),
        restart_count: of.spec.attempt,
        exit_code: exit.code,
        signal: exit.signal,
        started_at_ns: of.started_at_ns,
        finished_at_ns: exit.finished_at_ns,
        target: String::new(),
    }
}

fn exit_reason(exit: &sandbox::Exit) -> &'static str {
    if exit.oom_killed {
        "OOMKilled"
    } else if exit.lost.is_some() {
        "SandboxLost"
    } else if exit.code == 0 {
        "Completed"
    } else {
        "Error"
    }
}
