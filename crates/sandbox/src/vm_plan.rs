//! From a sandbox's specification to what the VMM and the agent are asked for:
//! pure, so that it can be looked at without a VM.

use crate::config::{Config, MAX_ID, Paths};
use crate::error::SandboxError;
use crate::name_files;
use crate::record::{BlockVolume, Sandbox};
use crate::scratch;
use crate::spec::{
    ContainerSpec, DeviceOf, DeviceSpec, DirectorySpec, Engine, HostMount, IdRange, Medium,
    MountSource, MountSpec, PidNamespace, ProcessSpec, ResourceSpec, SandboxSpec, ShownAs,
};
use guest_api::proto as guest;
use std::collections::BTreeSet;
use vm_launcher::{Cgroup, CgroupError};
use vm_spec::proto::{BootRequest, Extent};

/// Most volumes, sysctls or mounts that are taken.
const MAX_ITEMS: usize = 256;
/// Largest weight that a cgroup takes.
const MAX_CPU_WEIGHT: u64 = 10_000;

fn invalid(field: &'static str, message: impl Into<String>) -> SandboxError {
    SandboxError::Invalid {
        field,
        message: message.into(),
    }
}

/// Whether a text may be the id of a sandbox, and so a directory's name.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
}

/// Refuses a specification no VM can have.
pub(crate) fn check_sandbox(spec: &SandboxSpec, paths: &Paths) -> Result<(), SandboxError> {
    if !is_id(&spec.id) {
        let form = "must be 1 to 64 lower-case letters, digits and '-'";
        return Err(invalid("id", format!("{:?} {form}", spec.id)));
    }
    if !paths.sockets_fit() {
        return Err(invalid("id", "too long for the paths of its sockets"));
    }
    if spec.name.is_empty() {
        return Err(invalid("name", "required"));
    }
    if spec.hostname.is_empty() || spec.hostname.len() > 64 {
        return Err(invalid("hostname", "must have 1 to 64 characters"));
    }
    if let Some(mib) = spec.scratch_mib {
        scratch::check_size(mib)?;
    }
    if spec.volumes.len() > MAX_ITEMS || spec.sysctls.len() > MAX_ITEMS {
        return Err(invalid("volumes", "more than 256 volumes or sysctls"));
    }
    if !spec.cgroup_parent.is_empty()
        && let Err(error @ CgroupError::Name(_)) = Cgroup::named(&spec.cgroup_parent)
    {
        return Err(invalid("cgroup_parent", error.to_string()));
    }
    if let Some(users) = &spec.user_namespace {
        check_ids("user_namespace.uids", users.uids)?;
        check_ids("user_namespace.gids", users.gids)?;
    }
    let blocks = spec.block_volumes.iter().map(|v| &v.volume);
    let names = spec.volumes.iter().map(|v| v.name.as_str());
    let names: BTreeSet<&str> = names
        .chain(blocks.clone().map(|v| v.name.as_str()))
        .collect();
    if names.len() != spec.volumes.len() + spec.block_volumes.len() {
        return Err(invalid("volumes", "two volumes of one name"));
    }
    for volume in blocks {
        crate::volumes::check(volume)?;
        if spec.volume_bays == 0 {
            return Err(invalid("volume_bays", "block volumes need at least one"));
        }
    }
    let is_word = |text: &String| name_files::is_word(text);
    if !spec
        .host_aliases
        .iter()
        .all(|a| a.hostnames.iter().all(is_word))
    {
        return Err(invalid("host_aliases", "a name must be one word"));
    }
    let dns = [&spec.dns.servers, &spec.dns.searches, &spec.dns.options];
    if !dns.into_iter().flatten().all(is_word) {
        return Err(invalid("dns", "each entry must be one word"));
    }
    let request = boot(spec, Engine::Kvm, "", 0);
    vm_spec::check_boot(&request).map_err(|error| invalid("vm", error.to_string()))
}

fn check_ids(field: &'static str, range: IdRange) -> Result<(), SandboxError> {
    let IdRange { first, count } = range;
    if first == 0 {
        return Err(invalid(
            field,
            "0 is the guest's root; name another first id",
        ));
    }
    // The last number of all is no id.
    if count == 0 || first.checked_add(count).is_none() {
        let message = format!("{count} ids from {first} on: must be at least one, to 4294967294");
        return Err(invalid(field, message));
    }
    Ok(())
}

/// Refuses a container that cannot be in that sandbox, which has these block
/// volumes.
pub(crate) fn check_container(
    spec: &ContainerSpec,
    sandbox: &SandboxSpec,
    blocks: &[BlockVolume],
) -> Result<(), SandboxError> {
    if spec.name.is_empty() {
        return Err(invalid("name", "required"));
    }
    if spec.process.args.is_empty() {
        return Err(invalid("process.args", "required"));
    }
    if !spec.process.cwd.starts_with('/') {
        return Err(invalid("process.cwd", "must be an absolute path"));
    }
    if !spec.log_path.is_absolute() {
        return Err(invalid("log_path", "must be an absolute path"));
    }
    if spec.mounts.len() > MAX_ITEMS {
        return Err(invalid("mounts", "more than 256 mounts"));
    }
    for mount in &spec.mounts {
        match &mount.source {
            MountSource::Volume(name)
                if !sandbox.volumes.iter().any(|v| v.name == *name)
                    && !blocks
                        .iter()
                        .any(|v| v.spec.name == *name && v.spec.shown_as != ShownAs::Device) =>
            {
                let message = format!("the sandbox has no volume {name:?}");
                return Err(invalid("mounts", message));
            }
            MountSource::Host(HostMount { path, .. }) if !sandbox.shares => {
                let message = format!(
                    "{}: the sandbox was made without a device for host directories",
                    path.display()
                );
                return Err(invalid("mounts", message));
            }
            MountSource::Host(HostMount {
                path,
                id_mapped: true,
                ..
            }) if sandbox.user_namespace.is_none() => {
                let message = format!(
                    "{}: the sandbox was made without a user namespace to map ids to",
                    path.display()
                );
                return Err(invalid("mounts", message));
            }
            MountSource::Host(host) => crate::shares::check_path(&host.path)?,
            MountSource::Volume(_) | MountSource::Image(_) => {}
        }
        if !mount.destination.starts_with('/') {
            return Err(invalid("mounts", "a destination must be an absolute path"));
        }
    }
    for device in &spec.devices {
        let path = &device.path;
        let is_device =
            |v: &BlockVolume| v.spec.name == *path && v.spec.shown_as == ShownAs::Device;
        if device.of == DeviceOf::Volume && !blocks.iter().any(is_device) {
            let message = format!("the sandbox has no block volume {path:?} without file system");
            return Err(invalid("devices", message));
        }
    }
    Ok(())
}

/// Refuses limits that no cgroup takes; the files named in `unified` are the
/// agent's to know.
pub(crate) fn check_resources(limits: &ResourceSpec) -> Result<(), SandboxError> {
    if limits.cpu_weight > MAX_CPU_WEIGHT {
        let message = format!("{}: must be 1 to {MAX_CPU_WEIGHT}", limits.cpu_weight);
        return Err(invalid("resources.cpu_weight", message));
    }
    if limits.cpu_quota_us != 0 && limits.cpu_period_us == 0 {
        return Err(invalid("resources.cpu_period_us", "required with a quota"));
    }
    if limits.unified.len() > MAX_ITEMS {
        return Err(invalid("resources.unified", "more than 256 entries"));
    }
    Ok(())
}

/// The VM.
pub(crate) fn boot(
    spec: &SandboxSpec,
    engine: Engine,
    extra_cmdline: &str,
    kernel_log_limit: u64,
) -> BootRequest {
    BootRequest {
        engine: engine.to_proto().into(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        extra_cmdline: extra_cmdline.to_owned(),
        kernel_log_limit,
        shares: spec.shares,
        volume_bays: spec.volume_bays,
        ..BootRequest::default()
    }
}

/// The VM of a sandbox under these settings.
pub(crate) fn boot_request(spec: &SandboxSpec, engine: Engine, config: &Config) -> BootRequest {
    boot(spec, engine, &config.extra_cmdline, config.kernel_log_limit)
}

/// Part of a bay as the agent names it.
pub(crate) fn disk_extent(extent: &Extent) -> guest::DiskExtent {
    let device = match extent.bay() {
        _ if !extent.device.is_empty() => &extent.device,
        // A VMM of an older version does not say it.
        vm_spec::proto::Bay::Writable => "vdb",
        _ => "vda",
    };
    guest::DiskExtent {
        device: device.to_owned(),
        offset: extent.offset,
        length: extent.length,
    }
}

/// What the agent is told of the sandbox.
pub(crate) fn setup(
    sandbox: &Sandbox,
    scratch: &Extent,
    unix_time_ns: u64,
    entropy: Vec<u8>,
) -> guest::SetupSandboxRequest {
    let spec = &sandbox.spec;
    guest::SetupSandboxRequest {
        sandbox_id: spec.id.clone(),
        hostname: spec.hostname.clone(),
        unix_time_ns,
        entropy,
        scratch: Some(disk_extent(scratch)),
        share_process_namespace: spec.share_process_namespace,
        user_namespace: spec.user_namespace.map(|users| guest::UserNamespace {
            uids: Some(id_range(users.uids)),
            gids: Some(id_range(users.gids)),
        }),
        sysctls: spec.sysctls.clone().into_iter().collect(),
        shm_size: spec.shm_size,
        volumes: spec
            .volumes
            .iter()
            .map(|volume| guest::Volume {
                name: volume.name.clone(),
                medium: match volume.medium {
                    Medium::Scratch => guest::volume::Medium::Scratch,
                    Medium::Memory => guest::volume::Medium::Memory,
                }
                .into(),
                size_limit: volume.size_limit,
                group: volume.group,
            })
            .collect(),
        etc_hosts: name_files::hosts(&spec.hostname, &sandbox.pod_ips, &spec.host_aliases),
        resources: Some(resources(&spec.resources)),
        shares_tag: if spec.shares {
            vm_spec::SHARES_TAG.to_owned()
        } else {
            String::new()
        },
        ..guest::SetupSandboxRequest::default()
    }
}

/// A directory as the agent makes it.
pub(crate) fn directory(DirectorySpec { uid, gid, mode }: DirectorySpec) -> guest::Directory {
    guest::Directory { uid, gid, mode }
}

fn id_range(IdRange { first, count }: IdRange) -> guest::IdRange {
    guest::IdRange { first, count }
}

/// What was put into the VM for a mount.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mounted {
    /// Nothing: the sandbox's volume is there.
    Volume,
    /// An image.
    Image(Extent),
    /// A kubelet's emptyDir, as a volume.
    Inside {
        /// The volume's name.
        volume: String,
        /// Below it; empty: all of it.
        sub_path: String,
    },
    /// A directory or file of the host.
    Share {
        /// The share's name.
        name: String,
        /// Mounted read-only in the guest.
        read_only: bool,
    },
}

/// What the agent is told of a container; `mounted` are its mounts' sources,
/// `devices` the block volumes of its devices that are the host's, `image_volumes`
/// the paths that its image wants as volumes.
pub(crate) fn create(
    id: &str,
    spec: &ContainerSpec,
    image: &Extent,
    mounted: &[Mounted],
    devices: &[Option<String>],
    image_volumes: Vec<String>,
) -> guest::CreateContainerRequest {
    guest::CreateContainerRequest {
        container_id: id.to_owned(),
        image: Some(disk_extent(image)),
        process: Some(process(&spec.process)),
        mounts: spec
            .mounts
            .iter()
            .zip(mounted)
            .map(|(spec, mounted)| mount(spec, mounted))
            .collect(),
        readonly_rootfs: spec.readonly_rootfs,
        privileged: spec.privileged,
        resources: Some(resources(&spec.resources)),
        pid_namespace: Some(pid_namespace(&spec.pid_namespace)),
        paths: spec.paths.as_ref().map(|rules| guest::PathRules {
            masked: rules.masked.clone(),
            read_only: rules.read_only.clone(),
        }),
        devices: spec
            .devices
            .iter()
            .zip(devices)
            .map(|(spec, volume)| device(spec, volume.as_deref()))
            .collect(),
        image_volumes,
        writable_layer_max: spec.writable_layer_max,
    }
}

fn device(spec: &DeviceSpec, volume: Option<&str>) -> guest::Device {
    let mut device = guest::Device {
        destination: spec.destination.clone(),
        read_only: spec.read_only,
        ..guest::Device::default()
    };
    match (spec.of, volume) {
        (DeviceOf::Guest, _) => device.path.clone_from(&spec.path),
        (DeviceOf::Volume, _) => device.volume.clone_from(&spec.path),
        (DeviceOf::Host, volume) => device.volume = volume.unwrap_or_default().to_owned(),
    }
    device
}

fn mount(spec: &MountSpec, mounted: &Mounted) -> guest::Mount {
    let mut mount = guest::Mount {
        sub_path: spec.sub_path.clone(),
        destination: spec.destination.clone(),
        read_only: spec.read_only,
        ..guest::Mount::default()
    };
    if let MountSource::Volume(name) = &spec.source {
        mount.volume.clone_from(name);
    }
    match mounted {
        Mounted::Volume => {}
        Mounted::Image(extent) => mount.image = Some(disk_extent(extent)),
        // Nobody mounts anything beneath it, and its ids are the containers' anyway.
        Mounted::Inside { volume, sub_path } => {
            mount.volume.clone_from(volume);
            mount.sub_path.clone_from(sub_path);
        }
        Mounted::Share { name, read_only } => {
            if let MountSource::Host(host) = &spec.source {
                mount.host_to_container = host.host_to_container;
                mount.id_mapped = host.id_mapped;
            }
            mount.share.clone_from(name);
            mount.read_only = *read_only;
        }
    }
    mount
}

fn pid_namespace(wanted: &PidNamespace) -> guest::PidNamespace {
    use guest::pid_namespace::Mode;
    let (mode, target) = match wanted {
        PidNamespace::Default => (Mode::Unspecified, ""),
        PidNamespace::Container => (Mode::Container, ""),
        PidNamespace::Pod => (Mode::Pod, ""),
        PidNamespace::Target(id) => (Mode::Target, id.as_str()),
    };
    guest::PidNamespace {
        mode: mode.into(),
        target: target.to_owned(),
    }
}

/// Limits as the agent takes them.
pub(crate) fn resources(limits: &ResourceSpec) -> guest::Resources {
    guest::Resources {
        cpu_quota_us: limits.cpu_quota_us,
        cpu_period_us: limits.cpu_period_us,
        cpu_weight: limits.cpu_weight,
        memory_max: limits.memory_max,
        memory_low: limits.memory_low,
        pids_max: limits.pids_max,
        oom_group: limits.oom_group,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        unified: limits.unified.clone().into_iter().collect(),
    }
}

fn process(spec: &ProcessSpec) -> guest::Process {
    let capabilities = &spec.capabilities;
    let ambient = &spec.ambient_capabilities;
    guest::Process {
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: Some(guest::User {
            name: spec.user.clone(),
            uid: spec.uid,
            gid: spec.gid,
            additional_gids: spec.additional_gids.clone(),
            strict_groups: spec.strict_groups,
        }),
        capabilities: Some(guest::Capabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities.clone(),
            // The kernel takes no capability as ambient that is not inheritable.
            inheritable: ambient.clone(),
            ambient: ambient.clone(),
        }),
        rlimits: spec
            .rlimits
            .iter()
            .map(|limit| guest::Rlimit {
                kind: limit.kind.clone(),
                soft: limit.soft,
                hard: limit.hard,
            })
            .collect(),
        terminal: spec.terminal,
        no_new_privileges: spec.no_new_privileges,
        stdin: spec.stdin,
        oom_score_adj: spec.oom_score_adj,
        seccomp: spec.seccomp.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::spec::{MountSpec, UserNamespace, VolumeSpec};
    use std::path::PathBuf;

    pub(crate) fn spec() -> SandboxSpec {
        SandboxSpec {
            id: "a1".into(),
            name: "web".into(),
            namespace: "default".into(),
            uid: "u".into(),
            attempt: 0,
            labels: Default::default(),
            annotations: Default::default(),
            hostname: "web".into(),
            vcpus: 1,
            memory_mib: 128,
            engine: None,
            scratch_mib: None,
            cgroup_parent: String::new(),
            share_process_namespace: false,
            user_namespace: None,
            sysctls: Default::default(),
            shm_size: 0,
            volumes: vec![VolumeSpec {
                name: "data".into(),
                medium: Medium::Memory,
                size_limit: 1,
                group: None,
            }],
            shares: false,
            empty_dirs_inside: false,
            block_volumes: Vec::new(),
            volume_bays: 0,
            network: None,
            host_aliases: Vec::new(),
            dns: Default::default(),
            resources: Default::default(),
            caller_data: String::new(),
        }
    }

    pub(crate) fn container_spec(log_path: PathBuf) -> ContainerSpec {
        ContainerSpec {
            name: "c".into(),
            attempt: 0,
            labels: Default::default(),
            annotations: Default::default(),
            image: "busybox".into(),
            process: ProcessSpec {
                args: vec!["true".into()],
                cwd: "/".into(),
                ..ProcessSpec::default()
            },
            mounts: Vec::new(),
            readonly_rootfs: false,
            privileged: false,
            writable_layer_max: 0,
            resources: Default::default(),
            log_path,
            stop_signal: 0,
            pid_namespace: Default::default(),
            paths: None,
            devices: Vec::new(),
            caller_data: String::new(),
        }
    }

    fn paths() -> Paths {
        Paths {
            state: "/s".into(),
            run: "/r".into(),
        }
    }

    fn field(result: Result<(), SandboxError>) -> &'static str {
        match result {
            Err(SandboxError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_no_vm_can_have_is_refused_by_field() {
        check_sandbox(&spec(), &paths()).unwrap();
        let with = |change: fn(&mut SandboxSpec)| {
            let mut spec = spec();
            change(&mut spec);
            field(check_sandbox(&spec, &paths()))
        };
        assert_eq!(with(|s| s.id = "../x".into()), "id");
        assert_eq!(with(|s| s.id = String::new()), "id");
        assert_eq!(with(|s| s.hostname = String::new()), "hostname");
        assert_eq!(with(|s| s.vcpus = 65), "vm");
        assert_eq!(with(|s| s.memory_mib = 1), "vm");
        assert_eq!(with(|s| s.scratch_mib = Some(1)), "scratch_mib");
        assert_eq!(with(|s| s.volumes.push(s.volumes[0].clone())), "volumes");
        let smuggled = |s: &mut SandboxSpec| {
            s.host_aliases.push(crate::HostAlias {
                ip: [10, 0, 0, 1].into(),
                hostnames: vec!["a\n10.0.0.2 b".into()],
            });
        };
        assert_eq!(with(smuggled), "host_aliases");
        let range = |first, count| IdRange { first, count };
        for wrong in [range(0, 5), range(1, 0), range(2, u32::MAX - 1)] {
            let with = |uids, gids| {
                let mut spec = spec();
                spec.user_namespace = Some(UserNamespace { uids, gids });
                check_sandbox(&spec, &paths())
            };
            let right = range(1, u32::MAX - 1);
            assert_eq!(field(with(wrong, right)), "user_namespace.uids");
            assert_eq!(field(with(right, wrong)), "user_namespace.gids");
            with(right, right).unwrap();
        }
    }

    #[test]
    fn containers_mount_only_volumes_of_their_sandbox() {
        let mut container = container_spec("/l".into());
        check_container(&container, &spec(), &[]).unwrap();
        container.mounts.push(MountSpec {
            source: MountSource::Volume("other".into()),
            sub_path: String::new(),
            destination: "/d".into(),
            read_only: false,
        });
        assert_eq!(field(check_container(&container, &spec(), &[])), "mounts");
    }

    #[test]
    fn ids_are_mapped_only_to_a_user_namespace() {
        let mut container = container_spec("/l".into());
        container.mounts.push(MountSpec {
            source: MountSource::Host(HostMount {
                path: "/h".into(),
                host_to_container: false,
                recursive_read_only: false,
                id_mapped: true,
                within: Vec::new(),
            }),
            sub_path: String::new(),
            destination: "/d".into(),
            read_only: false,
        });
        let mut sandbox = spec();
        sandbox.shares = true;
        assert_eq!(field(check_container(&container, &sandbox, &[])), "mounts");
        let range = IdRange { first: 1, count: 1 };
        sandbox.user_namespace = Some(UserNamespace {
            uids: range,
            gids: range,
        });
        check_container(&container, &sandbox, &[]).unwrap();
    }

    #[test]
    fn bays_have_their_device_names() {
        let extent = |bay: vm_spec::proto::Bay| Extent {
            bay: bay.into(),
            offset: 4096,
            length: 8192,
            ..Extent::default()
        };
        assert_eq!(
            disk_extent(&extent(vm_spec::proto::Bay::ReadOnly)).device,
            "vda"
        );
        assert_eq!(
            disk_extent(&extent(vm_spec::proto::Bay::Writable)).device,
            "vdb"
        );
    }
}
