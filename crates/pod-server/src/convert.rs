//! The engine's pods and the store's images as messages.

use image_store::Image;
use pod_api::v1;
use pod_engine::{ContainerState, ContainerStatus, Phase, Pod};

/// A pod as the API shows it.
pub(crate) fn pod(pod: &Pod) -> v1::Pod {
    let phase = match pod.phase {
        Phase::Pending => v1::Phase::Pending,
        Phase::Running => v1::Phase::Running,
        Phase::Succeeded => v1::Phase::Succeeded,
        Phase::Failed => v1::Phase::Failed,
    };
    v1::Pod {
        id: pod.id.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        labels: pod.labels.clone().into_iter().collect(),
        annotations: pod.annotations.clone().into_iter().collect(),
        phase: phase.into(),
        reason: pod.reason.clone(),
        message: pod.message.clone(),
        created_at_ns: pod.created_at_ns,
        started_at_ns: pod.started_at_ns,
        finished_at_ns: pod.finished_at_ns,
        engine: engine(pod.engine).into(),
        init_containers: pod.init_containers.iter().map(container).collect(),
        containers: pod.containers.iter().map(container).collect(),
        ephemeral_containers: pod.ephemeral_containers.iter().map(container).collect(),
        vm: pod.vm.map(|vm| v1::VmInfo {
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            vmm_pid: vm.vmm_pid,
        }),
        stages: pod
            .stages
            .iter()
            .map(|s| v1::Stage {
                name: s.name.clone(),
                started_at_ns: s.started_at_ns,
                duration_ns: s.duration_ns,
            })
            .collect(),
        manifest: pod.manifest.clone(),
        pod_ips: pod.pod_ips.iter().map(ToString::to_string).collect(),
    }
}

fn container(status: &ContainerStatus) -> v1::Container {
    let state = match status.state {
        ContainerState::Waiting => v1::container::State::Waiting,
        ContainerState::Running => v1::container::State::Running,
        ContainerState::Terminated => v1::container::State::Terminated,
    };
    v1::Container {
        name: status.name.clone(),
        id: status.id.clone(),
        image: status.image.clone(),
        image_id: status.image_id.clone(),
        state: state.into(),
        reason: status.reason.clone(),
        message: status.message.clone(),
        restart_count: status.restart_count,
        exit_code: status.exit_code,
        signal: status.signal,
        started_at_ns: status.started_at_ns,
        finished_at_ns: status.finished_at_ns,
        target: status.target.clone(),
    }
}

/// An engine's number; unspecified where none is chosen yet.
pub(crate) fn engine(engine: Option<sandbox::Engine>) -> v1::Engine {
    match engine {
        Some(sandbox::Engine::Kvm) => v1::Engine::Kvm,
        Some(sandbox::Engine::Qemu) => v1::Engine::Qemu,
        None => v1::Engine::Unspecified,
    }
}

/// The engine a caller asks for.
pub(crate) fn requested_engine(number: i32) -> Result<Option<sandbox::Engine>, tonic::Status> {
    match v1::Engine::try_from(number) {
        Ok(v1::Engine::Unspecified) => Ok(None),
        Ok(v1::Engine::Kvm) => Ok(Some(sandbox::Engine::Kvm)),
        Ok(v1::Engine::Qemu) => Ok(Some(sandbox::Engine::Qemu)),
        Err(_) => Err(tonic::Status::invalid_argument(format!(
            "engine: {number} is unknown; 0 is the daemon's choice, 1 kvm, 2 qemu"
        ))),
    }
}

/// An image as the API shows it.
pub(crate) fn image(image: &Image) -> v1::Image {
    v1::Image {
        id: image.id.to_string(),
        tags: image.tags.clone(),
        digests: image.digests.clone(),
        size: image.size,
        created_at_ns: image.created_at_ns,
    }
}
