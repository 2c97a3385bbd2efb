//! The calls of the CRI, as a kubelet makes them: one pod after the other, many at
//! once, and what the daemon needs for them.

use crate::memory;
use crate::report::{Collected, Section};
use anyhow::Context;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ImageSpec, ListContainersRequest, ListPodSandboxRequest, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopPodSandboxRequest,
};
use hyper_util::rt::TokioIo;
use spherule_tests::Daemon;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Containers on record while lists are measured.
const RECORDED: u32 = 100;
/// Lists that are measured.
const LISTS: usize = 50;
/// Pause between two calls that look whether the daemon still answers.
const GLANCE: Duration = Duration::from_millis(20);

type Client = RuntimeServiceClient<Channel>;

/// Measures on a daemon that has the busybox image and no pod.
pub(crate) fn measure(
    daemon: &Daemon,
    runs: usize,
    at_once: &[usize],
) -> anyhow::Result<Vec<Section>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut bench = Bench {
            client: connect(&daemon.run_dir().join("cri.sock")).await?,
            logs: daemon.dir().join("cri-logs").display().to_string(),
            pid: u64::from(daemon.pid()),
            names: 0,
        };
        let mut memory = Collected::default();
        memory.add("daemon, no pod", memory::pss(bench.pid)?);
        let calls = bench.calls(runs).await?;
        let lists = bench.lists().await?;
        let (many, answers) = bench.side_by_side(at_once, &mut memory).await?;
        memory.add("daemon, no pod any more", memory::pss(bench.pid)?);
        let memory = memory.section("memory of the daemon (PSS), KiB");
        Ok(vec![calls, lists, many, answers, memory])
    })
}

async fn connect(socket: &Path) -> anyhow::Result<Client> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never looked up: the connector goes to the socket.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("cannot speak the CRI on {}", socket.display()))?;
    Ok(Client::new(channel))
}

/// Milliseconds that some work took, with its result.
async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, f64)> {
    let start = Instant::now();
    let value = work.await?;
    Ok((value, start.elapsed().as_secs_f64() * 1e3))
}

struct Bench {
    client: Client,
    /// Where the kubelet would have the pods' logs.
    logs: String,
    /// The daemon's process.
    pid: u64,
    /// Sandboxes named so far.
    names: u32,
}

impl Bench {
    fn config(&mut self) -> PodSandboxConfig {
        self.names += 1;
        let name = format!("bench-{}", self.names);
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
                name: name.clone(),
            }),
            hostname: name.clone(),
            log_directory: format!("{}/{name}", self.logs),
            ..PodSandboxConfig::default()
        }
    }

    /// One pod after the other, after one that warms the caches.
    async fn calls(&mut self, runs: usize) -> anyhow::Result<Section> {
        let mut figures = Collected::default();
        for run in 0..=runs {
            eprintln!("CRI calls: run {run} of {runs}");
            let config = self.config();
            let client = &mut self.client;
            let (id, run_ms) = timed(run_sandbox(client.clone(), config.clone())).await?;
            let (container, create_ms) = timed(create(client.clone(), &id, &config, "c")).await?;
            let ((), start_ms) = timed(start(client.clone(), &container)).await?;
            let ((), exec_ms) = timed(exec_true(client.clone(), &container)).await?;
            let ((), stop_ms) = timed(stop(client.clone(), &id)).await?;
            let ((), remove_ms) = timed(remove(client.clone(), &id)).await?;
            if run > 0 {
                figures.add("RunPodSandbox", run_ms);
                figures.add("CreateContainer", create_ms);
                figures.add("StartContainer", start_ms);
                figures.add("both: made to running", create_ms + start_ms);
                figures.add(
                    "all three: asked for to running",
                    run_ms + create_ms + start_ms,
                );
                figures.add("ExecSync of true", exec_ms);
                figures.add("StopPodSandbox", stop_ms);
                figures.add("RemovePodSandbox", remove_ms);
                figures.add("both: stopped and removed", stop_ms + remove_ms);
            }
        }
        Ok(figures.section("calls of the CRI, ms"))
    }

    /// Lists and statuses with [`RECORDED`] containers that were made and not started.
    async fn lists(&mut self) -> anyhow::Result<Section> {
        eprintln!("CRI lists");
        let config = self.config();
        let id = run_sandbox(self.client.clone(), config.clone()).await?;
        let mut container = String::new();
        for number in 0..RECORDED {
            container = create(self.client.clone(), &id, &config, &format!("c{number}")).await?;
        }
        let mut figures = Collected::default();
        for _ in 0..LISTS {
            let ((), ms) = timed(list(self.client.clone())).await?;
            figures.add(&format!("ListContainers of {RECORDED}"), ms);
            let ((), ms) = timed(list_sandboxes(self.client.clone())).await?;
            figures.add("ListPodSandbox", ms);
            let ((), ms) = timed(status(self.client.clone(), &id)).await?;
            figures.add("PodSandboxStatus", ms);
            let ((), ms) = timed(container_status(self.client.clone(), &container)).await?;
            figures.add("ContainerStatus", ms);
        }
        remove(self.client.clone(), &id).await?;
        Ok(figures.section("lists and statuses, ms"))
    }

    /// So many sandboxes asked for at the same moment, and what another call
    /// takes meanwhile.
    async fn side_by_side(
        &mut self,
        at_once: &[usize],
        memory: &mut Collected,
    ) -> anyhow::Result<(Section, Section)> {
        let (mut figures, mut answers) = (Collected::default(), Collected::default());
        for &count in at_once {
            eprintln!("CRI: {count} sandboxes at once");
            let done = Arc::new(AtomicBool::new(false));
            let glances = tokio::spawn(glance(self.client.clone(), Arc::clone(&done)));
            let asked: Vec<_> = (0..count)
                .map(|_| {
                    let work = timed(run_sandbox(self.client.clone(), self.config()));
                    tokio::spawn(work)
                })
                .collect();
            let mut ids = Vec::new();
            for task in asked {
                let (id, ms) = task.await??;
                figures.add(&format!("RunPodSandbox, {count} at once"), ms);
                ids.push(id);
            }
            done.store(true, Ordering::Relaxed);
            for ms in glances.await?? {
                answers.add(&format!("ListContainers while {count} start"), ms);
            }
            memory.add(&format!("daemon, {count} pods"), memory::pss(self.pid)?);
            for _ in 0..LISTS {
                let ((), ms) = timed(list(self.client.clone())).await?;
                answers.add(&format!("ListContainers, {count} pods there"), ms);
            }
            let removals: Vec<_> = ids
                .into_iter()
                .map(|id| tokio::spawn(timed(remove_owned(self.client.clone(), id))))
                .collect();
            for task in removals {
                let ((), ms) = task.await??;
                figures.add(&format!("RemovePodSandbox, {count} at once"), ms);
            }
        }
        Ok((
            figures.section("sandboxes side by side, ms"),
            answers.section("other calls, ms"),
        ))
    }
}

/// Asks for a list again and again until `done`; returns what each took, in ms.
async fn glance(client: Client, done: Arc<AtomicBool>) -> anyhow::Result<Vec<f64>> {
    let mut took = Vec::new();
    while !done.load(Ordering::Relaxed) {
        took.push(timed(list(client.clone())).await?.1);
        tokio::time::sleep(GLANCE).await;
    }
    Ok(took)
}

async fn run_sandbox(mut client: Client, config: PodSandboxConfig) -> anyhow::Result<String> {
    let request = RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    let response = client.run_pod_sandbox(request).await?;
    Ok(response.into_inner().pod_sandbox_id)
}

async fn create(
    mut client: Client,
    sandbox: &str,
    config: &PodSandboxConfig,
    name: &str,
) -> anyhow::Result<String> {
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: spherule_tests::IMAGE.into(),
            ..ImageSpec::default()
        }),
        command: vec!["sleep".into(), "3600".into()],
        log_path: format!("{name}/0.log"),
        ..ContainerConfig::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(container),
        sandbox_config: Some(config.clone()),
    };
    let response = client.create_container(request).await?;
    Ok(response.into_inner().container_id)
}

async fn start(mut client: Client, container: &str) -> anyhow::Result<()> {
    let container_id = container.to_owned();
    client
        .start_container(StartContainerRequest { container_id })
        .await?;
    Ok(())
}

async fn exec_true(mut client: Client, container: &str) -> anyhow::Result<()> {
    let request = ExecSyncRequest {
        container_id: container.into(),
        cmd: vec!["true".into()],
        timeout: 60,
    };
    let code = client.exec_sync(request).await?.into_inner().exit_code;
    anyhow::ensure!(code == 0, "`true` ended with {code}");
    Ok(())
}

async fn stop(mut client: Client, sandbox: &str) -> anyhow::Result<()> {
    let pod_sandbox_id = sandbox.to_owned();
    client
        .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id })
        .await?;
    Ok(())
}

async fn remove(mut client: Client, sandbox: &str) -> anyhow::Result<()> {
    let pod_sandbox_id = sandbox.to_owned();
    client
        .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
        .await?;
    Ok(())
}

async fn remove_owned(client: Client, sandbox: String) -> anyhow::Result<()> {
    remove(client, &sandbox).await
}

async fn list(mut client: Client) -> anyhow::Result<()> {
    client
        .list_containers(ListContainersRequest { filter: None })
        .await?;
    Ok(())
}

async fn list_sandboxes(mut client: Client) -> anyhow::Result<()> {
    client
        .list_pod_sandbox(ListPodSandboxRequest { filter: None })
        .await?;
    Ok(())
}

async fn status(mut client: Client, sandbox: &str) -> anyhow::Result<()> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.into(),
        verbose: false,
    };
    client.pod_sandbox_status(request).await?;
    Ok(())
}

async fn container_status(mut client: Client, container: &str) -> anyhow::Result<()> {
    let request = ContainerStatusRequest {
        container_id: container.into(),
        verbose: false,
    };
    client.container_status(request).await?;
    Ok(())
}
