//! The RuntimeService over real records, on a machine that can start no VM.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use cri_api::v1::runtime_service_server::RuntimeService;
use cri_api::v1::*;
use cri_server::{Config, RuntimeServer};
use image_store::ImageStore;
use sandbox::{Engine, Sandboxes};
use state_store::StateStore;
use streaming_server::StreamingServer;
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Response, Status};
use vm_launcher::Launcher;

/// A server whose VMMs do not start.
async fn server() -> (RuntimeServer, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
    let images = ImageStore::open(dir.path(), state.clone(), image_store::Config::default());
    let images = images.unwrap();
    let config = sandbox::Config::new(
        dir.path(),
        dir.path().join("run"),
        "/nowhere/vmlinux",
        "/nowhere/initramfs",
        Launcher::new("/nowhere/spherule-vmm"),
        Engine::Qemu,
    );
    let sandboxes = Sandboxes::open(config, &state, images.clone())
        .await
        .unwrap();
    let backend = cri_server::streaming_backend(sandboxes.clone());
    let streams = StreamingServer::bind(streaming_server::Config::loopback(), backend);
    let streams = streams.await.unwrap().urls();
    let mut config = Config::new("1.2.3", 4096);
    config.network = false;
    (
        RuntimeServer::new(sandboxes, images, &state, streams, config),
        dir,
    )
}

fn code<T>(answer: Result<Response<T>, Status>) -> Code {
    match answer {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        ..PodSandboxConfig::default()
    }
}

#[tokio::test]
async fn version_says_what_the_kubelet_asks() {
    let (server, _dir) = server().await;
    let answer = server
        .version(Request::new(VersionRequest::default()))
        .await;
    let version = answer.unwrap().into_inner();
    assert_eq!(version.runtime_name, "spherule");
    assert_eq!(version.runtime_version, "1.2.3");
    assert_eq!(version.runtime_api_version, "v1");
}

#[tokio::test]
async fn stops_and_removals_of_nothing_succeed() {
    let (server, _dir) = server().await;
    let pod_sandbox_id = "f00".to_owned();
    let container_id = "f00".to_owned();
    let stop = StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    };
    assert_eq!(
        code(server.stop_pod_sandbox(Request::new(stop)).await),
        Code::Ok
    );
    let remove = RemovePodSandboxRequest { pod_sandbox_id };
    assert_eq!(
        code(server.remove_pod_sandbox(Request::new(remove)).await),
        Code::Ok
    );
    let stop = StopContainerRequest {
        container_id: container_id.clone(),
        timeout: 5,
    };
    assert_eq!(
        code(server.stop_container(Request::new(stop)).await),
        Code::Ok
    );
    let remove = RemoveContainerRequest { container_id };
    assert_eq!(
        code(server.remove_container(Request::new(remove)).await),
        Code::Ok
    );
}

#[tokio::test]
async fn unknown_ids_are_not_found_and_missing_ones_are_invalid() {
    let (server, _dir) = server().await;
    for (id, wanted) in [("f00", Code::NotFound), ("", Code::InvalidArgument)] {
        let id = || id.to_owned();
        let status = PodSandboxStatusRequest {
            pod_sandbox_id: id(),
            verbose: false,
        };
        assert_eq!(
            code(server.pod_sandbox_status(Request::new(status)).await),
            wanted
        );
        let status = ContainerStatusRequest {
            container_id: id(),
            verbose: false,
        };
        assert_eq!(
            code(server.container_status(Request::new(status)).await),
            wanted
        );
        let start = StartContainerRequest { container_id: id() };
        assert_eq!(
            code(server.start_container(Request::new(start)).await),
            wanted
        );
        let exec = ExecSyncRequest {
            container_id: id(),
            cmd: vec!["true".into()],
            timeout: 0,
        };
        assert_eq!(code(server.exec_sync(Request::new(exec)).await), wanted);
        let reopen = ReopenContainerLogRequest { container_id: id() };
        assert_eq!(
            code(server.reopen_container_log(Request::new(reopen)).await),
            wanted
        );
        let update = UpdateContainerResourcesRequest {
            container_id: id(),
            ..UpdateContainerResourcesRequest::default()
        };
        assert_eq!(
            code(
                server
                    .update_container_resources(Request::new(update))
                    .await
            ),
            wanted
        );
        let create = CreateContainerRequest {
            pod_sandbox_id: id(),
            ..CreateContainerRequest::default()
        };
        assert_eq!(
            code(server.create_container(Request::new(create)).await),
            wanted
        );
        if wanted == Code::InvalidArgument {
            let stop = StopPodSandboxRequest {
                pod_sandbox_id: id(),
            };
            assert_eq!(
                code(server.stop_pod_sandbox(Request::new(stop)).await),
                wanted
            );
        }
    }
}

#[tokio::test]
async fn malformed_requests_are_invalid_and_name_the_field() {
    let (server, _dir) = server().await;
    let run = |config, handler: &str| {
        let request = RunPodSandboxRequest {
            config,
            runtime_handler: handler.to_owned(),
        };
        server.run_pod_sandbox(Request::new(request))
    };
    let refused = async |answer: Result<Response<RunPodSandboxResponse>, Status>, field: &str| {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    };
    refused(run(None, "").await, "config:").await;
    refused(
        run(Some(PodSandboxConfig::default()), "").await,
        "config.metadata:",
    )
    .await;
    refused(run(Some(pod()), "unknown").await, "runtime_handler:").await;
    let exec = ExecSyncRequest::default();
    let status = server.exec_sync(Request::new(exec)).await.unwrap_err();
    assert!(status.message().starts_with("cmd:"), "{}", status.message());
    let stop = StopContainerRequest {
        container_id: "f00".into(),
        timeout: -1,
    };
    let status = server.stop_container(Request::new(stop)).await.unwrap_err();
    assert!(
        status.message().starts_with("timeout:"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn sandbox_that_cannot_be_made_leaves_nothing_and_frees_its_name() {
    let (server, dir) = server().await;
    for _ in 0..2 {
        let request = RunPodSandboxRequest {
            config: Some(pod()),
            runtime_handler: String::new(),
        };
        let status = server
            .run_pod_sandbox(Request::new(request))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{}", status.message());
    }
    let list = server.list_pod_sandbox(Request::new(ListPodSandboxRequest::default()));
    assert!(list.await.unwrap().into_inner().items.is_empty());
    assert_eq!(
        std::fs::read_dir(dir.path().join("pods")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn lists_of_nothing_are_empty_and_streams_end() {
    let (server, _dir) = server().await;
    let list = server.list_containers(Request::new(ListContainersRequest::default()));
    assert!(list.await.unwrap().into_inner().containers.is_empty());
    let stream = server.stream_containers(Request::new(StreamContainersRequest::default()));
    let pages: Vec<_> = stream.await.unwrap().into_inner().collect().await;
    assert!(
        pages
            .iter()
            .all(|page| page.as_ref().unwrap().containers.is_empty())
    );
    let stream = server.stream_pod_sandboxes(Request::new(StreamPodSandboxesRequest::default()));
    let pages: Vec<_> = stream.await.unwrap().into_inner().collect().await;
    assert!(
        pages
            .iter()
            .all(|page| page.as_ref().unwrap().pod_sandboxes.is_empty())
    );
}

#[tokio::test]
async fn calls_that_are_not_there_say_so() {
    let (server, _dir) = server().await;
    let checkpoint = Request::new(CheckpointContainerRequest::default());
    assert_eq!(
        code(server.checkpoint_container(checkpoint).await),
        Code::Unimplemented
    );
    let checkpoint = Request::new(CheckpointPodRequest::default());
    assert_eq!(
        code(server.checkpoint_pod(checkpoint).await),
        Code::Unimplemented
    );
    let restore = Request::new(RestorePodRequest::default());
    assert_eq!(code(server.restore_pod(restore).await), Code::Unimplemented);
}

#[tokio::test]
async fn range_of_pod_addresses_is_checked() {
    let (server, _dir) = server().await;
    let update = |range: &str| {
        let request = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig {
                network_config: Some(NetworkConfig {
                    pod_cidr: range.to_owned(),
                }),
            }),
        };
        server.update_runtime_config(Request::new(request))
    };
    assert_eq!(code(update("10.0.0.0/24,fd00::/64").await), Code::Ok);
    assert_eq!(code(update("").await), Code::Ok);
    assert_eq!(code(update("10.0.0.0").await), Code::InvalidArgument);
}
