//! CreateContainer.

use crate::capabilities::granted;
use crate::error::CriError;
use crate::record::{CriSandbox, keep_container};
use crate::sandbox_run::labels;
use crate::security::{Seccomp, User};
use crate::service::RuntimeServer;
use crate::{mounts, namespaces, process, resources, seccomp, security, signals};
use cri_api::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, CreateContainerResponse, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, Signal,
};
use image_store::{Image, ImageError};
use sandbox::{ContainerSpec, PidNamespace, UserNamespace};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;

const SECURITY: &str = "config.linux.security_context";
const RESOURCES: &str = "config.linux.resources";

/// CreateContainer: nothing of it runs yet. A caller that goes away meanwhile
/// leaves nothing behind.
pub(crate) async fn create_container(
    server: &RuntimeServer,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, CriError> {
    let sandbox = server.find_sandbox(&request.pod_sandbox_id)?;
    let mut config = request
        .config
        .ok_or_else(|| CriError::invalid("config", "required"))?;
    let log_directory = match sandbox.config.log_directory.as_str() {
        "" => request.sandbox_config.unwrap_or_default().log_directory,
        known => known.to_owned(),
    };
    let image = find_image(server, &config).await?;
    name_mounted(server, &mut config).await?;
    let target = |id: &str| target(server, &sandbox, id);
    let blocks = mounts::host_blocks(&config.devices).await?;
    let (mut spec, profile) = convert(&config, &sandbox, &image, &log_directory, &blocks, target)?;
    spec.process.seccomp = seccomp::program(profile, &spec.process.capabilities).await?;
    let container_id = make(server, sandbox.id(), spec).await?;
    Ok(CreateContainerResponse { container_id })
}

/// Makes it, and removes it again if nobody waits for it any more.
async fn make(
    server: &RuntimeServer,
    sandbox_id: &str,
    spec: ContainerSpec,
) -> Result<String, CriError> {
    let (done, result) = oneshot::channel();
    let sandboxes = server.sandboxes.clone();
    let owner = sandbox_id.to_owned();
    tokio::spawn(async move {
        let made = sandboxes.create_container(&owner, spec).await;
        let Err(Ok(container)) = done.send(made) else {
            return;
        };
        tracing::info!(
            container = container.id,
            "its caller went away; removing it"
        );
        if let Err(error) = sandboxes.remove_container(&container.id).await {
            tracing::warn!(container = container.id, %error, "could not be removed");
        }
    });
    let made = result.await;
    let made = made.map_err(|_| CriError::TaskDied(sandbox_id.to_owned()))?;
    Ok(made?.id)
}

async fn find_image(server: &RuntimeServer, config: &ContainerConfig) -> Result<Image, CriError> {
    let spec = config.image.clone().unwrap_or_default();
    if spec.image.is_empty() {
        return Err(CriError::invalid("config.image.image", "required"));
    }
    if !server.config.has_handler(&spec.runtime_handler) {
        let message = format!("no runtime for {:?} is configured", spec.runtime_handler);
        return Err(CriError::invalid("config.image.runtime_handler", message));
    }
    look_up(server, spec.image).await
}

async fn look_up(server: &RuntimeServer, name: String) -> Result<Image, CriError> {
    let (store, wanted) = (server.images.clone(), name.clone());
    let found = tokio::task::spawn_blocking(move || store.get(&wanted)).await;
    let found = found.map_err(|_| CriError::TaskDied(format!("image {name}")))??;
    found.ok_or_else(|| ImageError::NotFound { name }.into())
}

/// Writes the ids of mounted images into the configuration: the status tells them.
async fn name_mounted(
    server: &RuntimeServer,
    config: &mut ContainerConfig,
) -> Result<(), CriError> {
    for mount in &mut config.mounts {
        let Some(name) = mounts::image_name(mount).map(str::to_owned) else {
            continue;
        };
        let found = look_up(server, name).await?;
        if let Some(image) = &mut mount.image {
            image.image_ref = found.id.to_string();
        }
    }
    Ok(())
}

/// The full id of a running container of the same sandbox.
fn target(server: &RuntimeServer, sandbox: &CriSandbox, id: &str) -> Result<String, CriError> {
    let field = format!("{SECURITY}.namespace_options.target_id");
    let wrong = |message: String| CriError::invalid(field.clone(), message);
    let found = server
        .find_container(id)
        .map_err(|error| wrong(error.to_string()))?;
    if found.container.sandbox_id != sandbox.id() {
        return Err(wrong(format!("{id} is a container of another sandbox")));
    }
    Ok(found.container.id)
}

/// The container, and the filter of system calls it is still to get.
fn convert(
    config: &ContainerConfig,
    sandbox: &CriSandbox,
    image: &Image,
    log_directory: &str,
    host_blocks: &[bool],
    target: impl FnOnce(&str) -> Result<String, CriError>,
) -> Result<(ContainerSpec, Seccomp), CriError> {
    let metadata = metadata(config)?;
    refuse_foreign(config)?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone();
    let security = context.clone().unwrap_or_default();
    check_privileged(&security, sandbox)?;
    let profile = security::container_profiles(SECURITY, &security)?;
    let users = sandbox.sandbox.spec.user_namespace;
    let pid_namespace = pid_namespace(&linux, users, target)?;
    let limits = linux.resources.clone().unwrap_or_default();
    let hostname = &sandbox.sandbox.spec.hostname;
    let mut process = process::merge(config, &image.config, hostname)?;
    set_user(&mut process, security::user(SECURITY, &security)?);
    let capabilities = security.capabilities.clone().unwrap_or_default();
    let granted = granted(security.privileged, &capabilities)?;
    process.capabilities = granted.capabilities;
    process.ambient_capabilities = granted.ambient;
    process.no_new_privileges = security.no_new_privs;
    process.oom_score_adj = resources::oom_score_adj(RESOURCES, &limits)?;
    let (name, reference) = image_names(config.image.as_ref(), image);
    let spec = ContainerSpec {
        name: metadata.name.clone(),
        attempt: metadata.attempt,
        labels: labels(&config.labels),
        annotations: BTreeMap::new(),
        // By id: the name may mean another image by now.
        image: image.id.to_string(),
        process,
        mounts: mounts::convert(&config.mounts, users)?,
        readonly_rootfs: security.readonly_rootfs,
        privileged: security.privileged,
        // The CRI names none: the kubelet looks at the figures and evicts.
        writable_layer_max: 0,
        resources: resources::to_spec(RESOURCES, &limits, sandbox.sandbox.spec.vcpus)?,
        log_path: log_path(log_directory, &config.log_path)?,
        stop_signal: stop_signal(config, image)?,
        pid_namespace,
        paths: context
            .map(|context| security::paths(SECURITY, &context))
            .transpose()?,
        devices: mounts::devices(&config.devices, host_blocks)?,
        caller_data: keep_container(config, &name, &reference),
    };
    Ok((spec, profile))
}

fn metadata(config: &ContainerConfig) -> Result<&ContainerMetadata, CriError> {
    let metadata = config.metadata.as_ref();
    let metadata = metadata.ok_or_else(|| CriError::invalid("config.metadata", "required"))?;
    if metadata.name.is_empty() {
        return Err(CriError::invalid("config.metadata.name", "required"));
    }
    Ok(metadata)
}

fn refuse_foreign(config: &ContainerConfig) -> Result<(), CriError> {
    if config.windows.is_some() {
        let message = "this node runs Linux containers only";
        return Err(CriError::invalid("config.windows", message));
    }
    if let Some(device) = config.cdi_devices.first() {
        let message = format!(
            "{:?}: a device of the node cannot be handed to the pod's virtual machine yet",
            device.name
        );
        return Err(CriError::invalid("config.CDI_devices", message));
    }
    Ok(())
}

/// A privileged container needs a sandbox that allows it.
fn check_privileged(
    security: &LinuxContainerSecurityContext,
    sandbox: &CriSandbox,
) -> Result<(), CriError> {
    let linux = sandbox.config.linux.as_ref();
    let allowed = linux
        .and_then(|linux| linux.security_context.as_ref())
        .is_some_and(|context| context.privileged);
    if security.privileged && !allowed {
        return Err(CriError::invalid(
            format!("{SECURITY}.privileged"),
            "no privileged container is allowed in this sandbox: its own security context is not privileged",
        ));
    }
    Ok(())
}

fn pid_namespace(
    linux: &LinuxContainerConfig,
    users: Option<UserNamespace>,
    target: impl FnOnce(&str) -> Result<String, CriError>,
) -> Result<PidNamespace, CriError> {
    let context = linux.security_context.as_ref();
    let options = context.and_then(|context| context.namespace_options.as_ref());
    namespaces::of_container(SECURITY, options, users, target)
}

fn set_user(process: &mut sandbox::ProcessSpec, user: User) {
    process.uid = user.uid;
    process.gid = user.gid;
    if !user.name.is_empty() {
        process.user = user.name;
    }
    process.additional_gids = user.groups;
    process.strict_groups = user.strict_groups;
}

/// What people call the image, and its name by digest: its id where it came from
/// no registry.
fn image_names(asked: Option<&ImageSpec>, image: &Image) -> (String, String) {
    let asked = asked.cloned().unwrap_or_default();
    let id = image.id.to_string();
    let reference = image.digests.first().unwrap_or(&id).clone();
    let by_id = id.strip_prefix("sha256:").unwrap_or(&id);
    let digits = asked.image.strip_prefix("sha256:").unwrap_or(&asked.image);
    let name = if !asked.user_specified_image.is_empty() {
        asked.user_specified_image
    } else if by_id.starts_with(digits) {
        image.tags.first().unwrap_or(&reference).clone()
    } else {
        asked.image
    };
    (name, reference)
}

/// Where its output goes; without a directory or a name there is no log.
fn log_path(directory: &str, name: &str) -> Result<PathBuf, CriError> {
    if directory.is_empty() || name.is_empty() {
        return Ok(PathBuf::from("/dev/null"));
    }
    mounts::absolute("sandbox_config.log_directory", directory)?;
    mounts::relative("config.log_path", name)?;
    Ok(Path::new(directory).join(name))
}

/// The request's signal, or the image's; 0: SIGTERM.
fn stop_signal(config: &ContainerConfig, image: &Image) -> Result<u32, CriError> {
    let asked = Signal::try_from(config.stop_signal).map_err(|_| {
        let message = format!("{} is no signal", config.stop_signal);
        CriError::invalid("config.stop_signal", message)
    })?;
    let own = || {
        image
            .config
            .stop_signal
            .as_deref()
            .and_then(sandbox::signal_number)
    };
    Ok(match signals::from_cri(asked) {
        0 => own().unwrap_or(0),
        number => number,
    })
}

#[cfg(test)]
mod tests;
