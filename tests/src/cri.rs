//! A CRI client, and the requests that tests make most.

use crate::{Daemon, IMAGE};
use anyhow::{Context, ensure};
use cri_api::v1;
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use rustix::process::Pid;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Clients of both services of one daemon.
pub struct Cri {
    tasks: Runtime,
    /// RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// ImageService.
    pub images: ImageServiceClient<Channel>,
}

impl Cri {
    /// Connects to the socket that the daemon serves by default.
    pub fn connect(daemon: &Daemon) -> anyhow::Result<Self> {
        Self::at(&daemon.run_dir().join("cri.sock"))
    }

    /// Connects to a socket.
    pub fn at(socket: &Path) -> anyhow::Result<Self> {
        let tasks = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is never looked up: the connector goes to the socket.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = tasks
            .block_on(endpoint.connect_with_connector(connector))
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self {
            tasks,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
        })
    }

    /// The answer of a call, which must come in time.
    pub fn wait<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.tasks.block_on(async {
            match tokio::time::timeout(PATIENCE, call).await {
                Ok(answer) => answer.map(Response::into_inner),
                Err(_) => Err(Status::deadline_exceeded("the test waited long enough")),
            }
        })
    }

    /// Runs a sandbox; its id.
    pub fn run(&self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let answer = self.wait(self.runtime.clone().run_pod_sandbox(request))?;
        Ok(answer.pod_sandbox_id)
    }

    /// Makes a container; its id.
    pub fn create(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        sandbox_config: &v1::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let answer = self.wait(self.runtime.clone().create_container(request))?;
        Ok(answer.container_id)
    }

    /// Starts a container.
    pub fn start(&self, container: &str) -> Result<(), Status> {
        let container_id = container.to_owned();
        let request = v1::StartContainerRequest { container_id };
        self.wait(self.runtime.clone().start_container(request))
            .map(drop)
    }

    /// Stops a container with so many seconds of grace.
    pub fn stop(&self, container: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest {
            container_id: container.to_owned(),
            timeout,
        };
        self.wait(self.runtime.clone().stop_container(request))
            .map(drop)
    }

    /// Removes a container.
    pub fn remove(&self, container: &str) -> Result<(), Status> {
        let container_id = container.to_owned();
        let request = v1::RemoveContainerRequest { container_id };
        self.wait(self.runtime.clone().remove_container(request))
            .map(drop)
    }

    /// Stops a sandbox.
    pub fn stop_pod(&self, sandbox: &str) -> Result<(), Status> {
        let pod_sandbox_id = sandbox.to_owned();
        let request = v1::StopPodSandboxRequest { pod_sandbox_id };
        self.wait(self.runtime.clone().stop_pod_sandbox(request))
            .map(drop)
    }

    /// Removes a sandbox.
    pub fn remove_pod(&self, sandbox: &str) -> Result<(), Status> {
        let pod_sandbox_id = sandbox.to_owned();
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id };
        self.wait(self.runtime.clone().remove_pod_sandbox(request))
            .map(drop)
    }

    /// A container's status.
    pub fn container(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.wait(self.runtime.clone().container_status(request))?;
        answer
            .status
            .ok_or_else(|| Status::unknown("an answer without status"))
    }

    /// A sandbox's status.
    pub fn sandbox(&self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.wait(self.runtime.clone().pod_sandbox_status(request))?;
        answer
            .status
            .ok_or_else(|| Status::unknown("an answer without status"))
    }

    /// The VMM's process of a sandbox, as its status tells.
    pub fn vmm(&self, sandbox: &str) -> anyhow::Result<Pid> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: sandbox.to_owned(),
            verbose: true,
        };
        let status = self.wait(self.runtime.clone().pod_sandbox_status(request))?;
        let info = status.info.get("info").context("no info")?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        let pid = info["pid"].as_i64().context("no pid")?;
        Pid::from_raw(i32::try_from(pid)?).context("no pid")
    }

    /// Runs a command in a container to its end, which comes soon.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<v1::ExecSyncResponse, Status> {
        self.exec_within(container, command, 60)
    }

    /// Runs a command in a container to its end, for so many seconds at most.
    pub fn exec_within(
        &self,
        container: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let request = v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|arg| (*arg).to_owned()).collect(),
            timeout,
        };
        self.wait(self.runtime.clone().exec_sync(request))
    }

    /// Waits until a container has ended; its status then.
    pub fn ended(&self, container: &str) -> anyhow::Result<v1::ContainerStatus> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let status = self.container(container)?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(
                std::time::Instant::now() < deadline,
                "it runs on: {status:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// An image's status; `None` where it is not here.
    pub fn image(&self, name: &str) -> Result<Option<v1::Image>, Status> {
        let request = v1::ImageStatusRequest {
            image: Some(image(name)),
            verbose: false,
        };
        Ok(self.wait(self.images.clone().image_status(request))?.image)
    }
}

/// An image by a name of it.
pub fn image(name: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: name.to_owned(),
        ..v1::ImageSpec::default()
    }
}

/// A sandbox of that name, with its logs in a directory.
pub fn sandbox_config(name: &str, logs: &Path) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "tests".to_owned(),
            attempt: 0,
        }),
        log_directory: logs.display().to_string(),
        labels: [("test".to_owned(), name.to_owned())].into(),
        annotations: [("note".to_owned(), "kept".to_owned())].into(),
        linux: Some(v1::LinuxPodSandboxConfig::default()),
        ..v1::PodSandboxConfig::default()
    }
}

/// A busybox container that runs a shell script.
pub fn container_config(name: &str, script: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(image(IMAGE)),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        labels: [("container".to_owned(), name.to_owned())].into(),
        ..v1::ContainerConfig::default()
    }
}

/// The call was refused with that code, and said all of these.
pub fn refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    words: &[&str],
) -> anyhow::Result<()> {
    let Err(status) = answer else {
        anyhow::bail!("expected a refusal, not {answer:?}");
    };
    ensure!(status.code() == code, "expected {code:?}: {status:?}");
    for word in words {
        ensure!(status.message().contains(word), "no {word:?}: {status:?}");
    }
    Ok(())
}
