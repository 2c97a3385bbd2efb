//! From the sandbox crate's records to the CRI's messages.

use crate::record::{CriContainer, CriSandbox};
use crate::{network, resources, signals};
use cri_api::v1;
use sandbox::{Container, ContainerState, Exit, Sandbox, SandboxState};

/// The state clients see: what has no guest that takes containers is not ready.
pub(crate) fn sandbox_state(sandbox: &Sandbox) -> v1::PodSandboxState {
    match sandbox.state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        _ => v1::PodSandboxState::SandboxNotready,
    }
}

/// The state clients see: a removal does not change it.
pub(crate) fn container_state(container: &Container) -> v1::ContainerState {
    match container.state {
        ContainerState::Creating | ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited => v1::ContainerState::ContainerExited,
        ContainerState::Removing if container.exit.is_some() => v1::ContainerState::ContainerExited,
        ContainerState::Removing => v1::ContainerState::ContainerCreated,
    }
}

/// The sandbox as lists have it.
pub(crate) fn list_sandbox(sandbox: CriSandbox) -> v1::PodSandbox {
    let state = sandbox_state(&sandbox.sandbox).into();
    let config = sandbox.config;
    v1::PodSandbox {
        id: sandbox.sandbox.spec.id,
        metadata: config.metadata,
        state,
        created_at: sandbox.sandbox.created_at_ns,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: sandbox.handler,
    }
}

/// The sandbox's status.
pub(crate) fn sandbox_status(sandbox: &CriSandbox) -> v1::PodSandboxStatus {
    let config = &sandbox.config;
    let linux = config.linux.as_ref();
    let options = linux
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default();
    v1::PodSandboxStatus {
        id: sandbox.id().to_owned(),
        metadata: config.metadata.clone(),
        state: sandbox_state(&sandbox.sandbox).into(),
        created_at: sandbox.sandbox.created_at_ns,
        network: network::status(&sandbox.sandbox),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(options),
            }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

/// The container as lists have it.
pub(crate) fn list_container(container: CriContainer) -> v1::Container {
    let image = image_spec(&container);
    let state = container_state(&container.container).into();
    let config = container.config;
    v1::Container {
        id: container.container.id,
        pod_sandbox_id: container.container.sandbox_id,
        metadata: config.metadata,
        image: Some(image),
        image_ref: container.image_ref,
        state,
        created_at: container.container.created_at_ns,
        labels: config.labels,
        annotations: config.annotations,
        image_id: container.container.image_id,
    }
}

/// The request's image, under the name that people know.
fn image_spec(container: &CriContainer) -> v1::ImageSpec {
    let mut spec = container.config.image.clone().unwrap_or_default();
    spec.image.clone_from(&container.image);
    spec
}

/// How a container ended, in the kubelet's words: reason and message.
fn ending(exit: &Exit) -> (&'static str, String) {
    let cause = exit.start_error.as_ref().or(exit.lost.as_ref());
    let mut message = cause.cloned().unwrap_or_default();
    if let Some(log_error) = &exit.log_error {
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str("its log is incomplete: ");
        message.push_str(log_error);
    }
    let reason = match exit {
        Exit {
            oom_killed: true, ..
        } => "OOMKilled",
        Exit {
            start_error: Some(_),
            ..
        } => "StartError",
        Exit { lost: Some(_), .. } => "SandboxLost",
        Exit { code: 0, .. } => "Completed",
        _ => "Error",
    };
    (reason, message)
}

/// The container's status.
pub(crate) fn container_status(container: &CriContainer) -> v1::ContainerStatus {
    let of = &container.container;
    let config = &container.config;
    let (exit_code, finished_at, (reason, message)) = match &of.exit {
        Some(exit) => (exit.code, exit.finished_at_ns, ending(exit)),
        None => (0, 0, ("", String::new())),
    };
    let log_path = match config.log_path.as_str() {
        "" => String::new(),
        _ => of.spec.log_path.display().to_string(),
    };
    v1::ContainerStatus {
        id: of.id.clone(),
        metadata: config.metadata.clone(),
        state: container_state(of).into(),
        created_at: of.created_at_ns,
        started_at: of.started_at_ns,
        finished_at,
        exit_code,
        image: Some(image_spec(container)),
        image_ref: container.image_ref.clone(),
        reason: reason.to_owned(),
        message,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path,
        resources: Some(v1::ContainerResources {
            linux: Some(resources::in_force(container)),
            windows: None,
        }),
        image_id: of.image_id.clone(),
        user: of.user.as_ref().map(|user| v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().copied().map(i64::from).collect(),
            }),
        }),
        stop_signal: signals::to_cri(of.spec.stop_signal).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_have_the_kubelets_reasons() {
        let reason = |exit: Exit| ending(&exit).0;
        assert_eq!(reason(Exit::default()), "Completed");
        let code = |code| Exit {
            code,
            ..Exit::default()
        };
        assert_eq!(reason(code(1)), "Error");
        assert_eq!(
            reason(Exit {
                oom_killed: true,
                ..code(137)
            }),
            "OOMKilled"
        );
        let never = Exit {
            start_error: Some("no such file".into()),
            ..code(128)
        };
        assert_eq!(ending(&never), ("StartError", "no such file".to_owned()));
        let lost = Exit {
            lost: Some("the VM ended".into()),
            log_error: Some("disk full".into()),
            ..code(255)
        };
        let (reason, message) = ending(&lost);
        assert_eq!(reason, "SandboxLost");
        assert!(message.contains("the VM ended"), "{message}");
        assert!(message.contains("disk full"), "{message}");
    }
}
