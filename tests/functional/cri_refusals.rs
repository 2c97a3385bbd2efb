//! The CRI: what is refused, and how.

use crate::{Test, shared};
use anyhow::ensure;
use cri_api::v1::{self, NamespaceMode};
use spherule_tests::cri::{Cri, container_config, refused, sandbox_config};
use spherule_tests::{Daemon, DaemonOptions, guest_dir, machine, program};
use std::path::Path;
use std::process::Command;
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    ("namespaces_of_the_node_are_refused_by_name", namespaces),
    ("malformed_requests_name_their_field", malformed),
    ("unknown_runtime_handler_is_refused", handler),
    ("second_daemon_on_one_root_is_refused", second_daemon),
    ("socket_is_where_it_was_asked_for_and_private", socket),
    ("status_tells_conditions_engine_and_version", status),
];

fn connect() -> anyhow::Result<Cri> {
    Cri::connect(&*shared::daemon()?)
}

fn namespaces() -> anyhow::Result<()> {
    let cri = connect()?;
    let with = |change: fn(&mut v1::NamespaceOption)| {
        let mut config = sandbox_config("cri-node", Path::new("/tmp"));
        let mut options = v1::NamespaceOption::default();
        change(&mut options);
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.namespace_options = Some(options);
        config
    };
    let node = NamespaceMode::Node;
    let cases: [(v1::PodSandboxConfig, &str); 3] = [
        (
            with(|o| o.network = NamespaceMode::Node.into()),
            "hostNetwork",
        ),
        (with(|o| o.pid = NamespaceMode::Node.into()), "hostPID"),
        (with(|o| o.ipc = NamespaceMode::Node.into()), "hostIPC"),
    ];
    for (config, word) in cases {
        let words = [word, node.as_str_name(), "RuntimeClass"];
        refused(cri.run(&config), Code::InvalidArgument, &words)?;
    }
    let request = v1::ListPodSandboxRequest::default();
    let pods = cri.wait(cri.runtime.clone().list_pod_sandbox(request))?;
    let named = |p: &v1::PodSandbox| p.metadata.as_ref().is_some_and(|m| m.name == "cri-node");
    ensure!(!pods.items.iter().any(named), "a refused sandbox is there");
    Ok(())
}

fn malformed() -> anyhow::Result<()> {
    let cri = connect()?;
    let empty = v1::RunPodSandboxRequest::default();
    let answer = cri.wait(cri.runtime.clone().run_pod_sandbox(empty));
    refused(answer, Code::InvalidArgument, &["config"])?;
    let config = v1::PodSandboxConfig {
        metadata: None,
        ..sandbox_config("x", Path::new("/tmp"))
    };
    refused(cri.run(&config), Code::InvalidArgument, &["metadata"])?;
    let answer = cri.create("", container_config("c", "true"), &config);
    refused(answer, Code::InvalidArgument, &["pod_sandbox_id"])?;
    refused(cri.container(""), Code::InvalidArgument, &["container_id"])?;
    refused(cri.image(""), Code::InvalidArgument, &["image"])?;
    refused(cri.image("A B"), Code::InvalidArgument, &["A B"])?;
    let pull = v1::PullImageRequest {
        image: Some(spherule_tests::cri::image("reg.test/app")),
        auth: Some(v1::AuthConfig {
            auth: "?".into(),
            ..v1::AuthConfig::default()
        }),
        sandbox_config: None,
    };
    let answer = cri.wait(cri.images.clone().pull_image(pull));
    refused(answer, Code::InvalidArgument, &["auth.auth"])
}

fn handler() -> anyhow::Result<()> {
    let cri = connect()?;
    let request = v1::RunPodSandboxRequest {
        config: Some(sandbox_config("cri-handler", Path::new("/tmp"))),
        runtime_handler: "other".into(),
    };
    let answer = cri.wait(cri.runtime.clone().run_pod_sandbox(request));
    refused(answer, Code::InvalidArgument, &["runtime_handler", "other"])
}

fn second_daemon() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let run = tempfile::tempdir()?;
    let output = Command::new(program("spherule"))
        .arg("--run")
        .arg(run.path())
        .arg("serve")
        .arg("--root")
        .arg(daemon.root())
        .arg("--guest")
        .arg(guest_dir())
        .args(["--engine", machine().engine])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && text.contains("state.redb"),
        "{text}"
    );
    ensure!(!run.path().join("cri.sock").exists());
    // The first one noticed nothing.
    let version = v1::VersionRequest::default();
    let cri = connect()?;
    cri.wait(cri.runtime.clone().version(version))?;
    Ok(())
}

fn socket() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("sub/cri.sock");
    let daemon = Daemon::with(DaemonOptions {
        args: vec!["--listen".into(), format!("unix://{}", path.display())],
        image: false,
        ..DaemonOptions::default()
    })?;
    let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let cri = Cri::at(&path)?;
    let version = cri.wait(cri.runtime.clone().version(v1::VersionRequest::default()))?;
    ensure!(version.runtime_name == "spherule" && version.runtime_api_version == "v1");
    ensure!(!daemon.run_dir().join("cri.sock").exists());
    Ok(())
}

fn status() -> anyhow::Result<()> {
    let cri = connect()?;
    let request = v1::StatusRequest { verbose: true };
    let answer = cri.wait(cri.runtime.clone().status(request))?;
    let conditions = answer.status.unwrap_or_default().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        ensure!(
            conditions.iter().any(|c| c.r#type == name && c.status),
            "{conditions:?}"
        );
    }
    let names: Vec<_> = answer
        .runtime_handlers
        .iter()
        .map(|h| h.name.as_str())
        .collect();
    ensure!(
        names.contains(&"") && names.contains(&"spherule"),
        "{names:?}"
    );
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"])?;
    ensure!(info["node"]["engine"] == machine().engine, "{info:#}");
    ensure!(info["node"]["engineReason"].is_string(), "{info:#}");
    Ok(())
}
