//! SetupSandbox: what all containers of the pod share.

use crate::block_volumes::BlockVolumes;
use crate::clock;
use crate::disks::{Disks, Extent, Partition};
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::network;
use crate::pid_namespace::PidNamespace;
use crate::sys::entropy;
use crate::users::{self, Users};
use crate::volumes::{self, Volumes};
use guest_api::proto::{SetupSandboxRequest, SetupSandboxResponse};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags as Attr, MountPropagationFlags, UnmountFlags, mount_change, unmount,
};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::rc::Rc;

/// Size of /dev/shm where the request names none.
const DEFAULT_SHM: u64 = 64 << 20;
/// Least entropy taken as a seed.
const MIN_ENTROPY: usize = 32;
/// Longest tag of a virtio-fs device (virtio 1.2, 5.11.4).
const MAX_TAG: usize = 36;

/// The pod, once set up.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Without what is new in a repeated request (time, entropy).
    request: SetupSandboxRequest,
    response: SetupSandboxResponse,
    /// Directories of the volumes, by name.
    pub(crate) volumes: Volumes,
    pub(crate) block_volumes: BlockVolumes,
    pub(crate) users: Rc<Users>,
    /// Made when the first container wants it.
    pid_namespace: OnceCell<Rc<PidNamespace>>,
}

impl Sandbox {
    /// Whether containers get the pod's /etc/hosts.
    pub(crate) fn has_hosts(&self) -> bool {
        !self.request.etc_hosts.is_empty()
    }

    /// Whether containers get the pod's /etc/resolv.conf.
    pub(crate) fn has_resolv_conf(&self) -> bool {
        !self.request.resolv_conf.is_empty()
    }

    /// Whether containers share one PID namespace unless they say otherwise.
    pub(crate) fn shares_pids(&self) -> bool {
        self.request.share_process_namespace
    }

    /// The pod's PID namespace, made where it is not there yet.
    pub(crate) fn pid_namespace(&self) -> Result<Rc<PidNamespace>, AgentError> {
        if let Some(made) = self.pid_namespace.get() {
            return Ok(Rc::clone(made));
        }
        let new = Rc::new(PidNamespace::create()?);
        Ok(Rc::clone(self.pid_namespace.get_or_init(|| new)))
    }

    /// Whether the host shares files with the pod.
    pub(crate) fn has_shares(&self) -> bool {
        !self.request.shares_tag.is_empty()
    }

    /// The answer to a repeated request.
    pub(crate) fn repeat(
        &self,
        request: &SetupSandboxRequest,
    ) -> Result<SetupSandboxResponse, AgentError> {
        if lasting(request) == self.request {
            return Ok(self.response.clone());
        }
        Err(AgentError::Precondition {
            problem: format!(
                "this guest was set up for sandbox {} already, with other content",
                self.request.sandbox_id
            ),
            remedy: "start another VM for another sandbox",
        })
    }

    /// Sets the pod up. After a failure nothing of it stays mounted, and the
    /// call may be repeated.
    pub(crate) fn set_up(
        request: &SetupSandboxRequest,
        disks: &mut Disks,
        init_started_ns: u64,
    ) -> Result<Self, AgentError> {
        let (scratch, ids) = check(request)?;
        clock::set(request.unix_time_ns)?;
        entropy::credit(&request.entropy).doing(|| "seeding the random number generator".into())?;
        // First: what is set from here on may belong to one of its namespaces.
        let users = match ids {
            Some(ids) => Users::create(ids, &request.nics)?,
            None => Users::Guest,
        };
        rustix::system::sethostname(request.hostname.as_bytes())
            .doing(|| format!("setting the host name to {}", request.hostname))?;
        // Before the sysctls, which may be of an interface.
        network::set_up(&request.nics)?;
        apply_sysctls(request, &users)?;
        let mut partition = None;
        let mount = || mount_all(request, scratch.as_ref(), disks, &mut partition);
        let made = users.as_root(mount).flatten();
        let volumes = match made {
            Ok(volumes) => volumes,
            Err(e) => {
                unmount_all(request);
                if let Some(partition) = partition {
                    let _ = disks.delete_partition(&partition);
                }
                return Err(e);
            }
        };
        let response = SetupSandboxResponse {
            init_started_ns,
            ready_ns: clock::boot_time_ns(),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        };
        Ok(Self {
            request: lasting(request),
            response,
            volumes,
            block_volumes: BlockVolumes::default(),
            users: Rc::new(users),
            pid_namespace: OnceCell::new(),
        })
    }

    /// The answer to the first request.
    pub(crate) fn response(&self) -> SetupSandboxResponse {
        self.response.clone()
    }
}

fn lasting(request: &SetupSandboxRequest) -> SetupSandboxRequest {
    SetupSandboxRequest {
        unix_time_ns: 0,
        entropy: Vec::new(),
        ..request.clone()
    }
}

/// Checks everything before anything is done; returns the scratch extent and the
/// ids of the user namespace.
fn check(
    request: &SetupSandboxRequest,
) -> Result<(Option<Extent>, Option<users::Ids>), AgentError> {
    if request.sandbox_id.is_empty() {
        return Err(AgentError::invalid("sandbox_id", "the sandbox has no id"));
    }
    let name = request.hostname.as_bytes();
    if name.is_empty() || name.len() > 64 || name.contains(&0) {
        return Err(AgentError::invalid(
            "hostname",
            "a host name has 1 to 64 bytes, none of them NUL",
        ));
    }
    if request.entropy.len() < MIN_ENTROPY {
        let problem = format!("at least {MIN_ENTROPY} bytes of entropy are needed");
        return Err(AgentError::invalid("entropy", problem));
    }
    if request.unix_time_ns == 0 {
        return Err(AgentError::invalid("unix_time_ns", "the time is missing"));
    }
    for (key, value) in &request.sysctls {
        sysctl_path(key)?;
        if value.contains('\0') {
            let problem = "the value contains a NUL byte";
            return Err(AgentError::invalid(format!("sysctls[{key}]"), problem));
        }
    }
    if request.shares_tag.len() > MAX_TAG || request.shares_tag.contains('\0') {
        let problem = format!("a virtio-fs tag has at most {MAX_TAG} bytes, none of them NUL");
        return Err(AgentError::invalid("shares_tag", problem));
    }
    volumes::check(&request.volumes)?;
    let scratch = request.scratch.as_ref();
    let scratch = scratch.map(|extent| Extent::check(extent, "scratch"));
    let ids = request.user_namespace.as_ref().map(users::Ids::check);
    Ok((scratch.transpose()?, ids.transpose()?))
}

fn apply_sysctls(request: &SetupSandboxRequest, users: &Users) -> Result<(), AgentError> {
    // In an order that does not change from one try to the next.
    let sorted: BTreeMap<_, _> = request.sysctls.iter().collect();
    for (key, value) in sorted {
        let path = sysctl_path(key)?;
        let write = || {
            let mut file = File::options().write(true).open(&path)?;
            // In one call: each is a whole value to the kernel.
            file.write_all(value.as_bytes())
        };
        let written = match write() {
            // Those of an IPC namespace are its root's alone.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => users.as_root(write)?,
            other => other,
        };
        written.map_err(|e| {
            let why = match e.kind() {
                ErrorKind::NotFound => "the guest's kernel has no such setting".to_owned(),
                _ => e.to_string(),
            };
            let problem = format!("setting the sysctl {key} to \"{value}\" failed: {why}");
            AgentError::invalid(format!("sysctls[{key}]"), problem)
        })?;
    }
    Ok(())
}

/// The file of a sysctl, which is written "net.ipv4.ip_forward" or, where an
/// interface's name contains dots, "net/ipv4/conf/eth0.1/forwarding" or
/// "net.ipv4.conf.eth0/1.forwarding": the first separator is the separator, the
/// other character stands for a dot.
fn sysctl_path(key: &str) -> Result<PathBuf, AgentError> {
    let slashes = match (key.find('/'), key.find('.')) {
        (Some(slash), Some(dot)) => slash < dot,
        (slash, _) => slash.is_some(),
    };
    let parts: Vec<String> = key
        .split(if slashes { '/' } else { '.' })
        .map(|part| part.replace('/', "."))
        .collect();
    let wrong = |part: &String| matches!(part.as_str(), "" | "." | "..") || part.contains('\0');
    if parts.len() < 2 || parts.iter().any(wrong) {
        return Err(AgentError::invalid(
            format!("sysctls[{key}]"),
            format!("\"{key}\" is no name of a sysctl"),
        ));
    }
    let mut path = PathBuf::from("/proc/sys");
    path.extend(parts);
    Ok(path)
}

fn mount_all(
    request: &SetupSandboxRequest,
    scratch: Option<&Extent>,
    disks: &mut Disks,
    partition: &mut Option<Partition>,
) -> Result<Volumes, AgentError> {
    let mount = match scratch {
        Some(extent) => {
            let source = partition.insert(disks.add_partition(extent)?).path();
            mount_scratch(&source)?
        }
        None => fs_mount::new("tmpfs", &[("mode", "0755")], Attr::MOUNT_ATTR_NODEV)?,
    };
    fs_mount::attach_at(mount, layout::SCRATCH)?;
    for dir in [layout::LAYERS, layout::DISK_VOLUMES, layout::MEMORY_VOLUMES] {
        fs_mount::make_dir(dir)?;
    }
    let size = if request.shm_size == 0 {
        DEFAULT_SHM
    } else {
        request.shm_size
    }
    .to_string();
    let attributes = Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NOEXEC;
    let shm = fs_mount::new("tmpfs", &[("mode", "1777"), ("size", &size)], attributes)?;
    fs_mount::attach_at(shm, layout::SHM)?;
    let volumes = volumes::create_all(&request.volumes, scratch.is_some())?;
    for (path, text) in [
        (layout::HOSTS, &request.etc_hosts),
        (layout::RESOLV_CONF, &request.resolv_conf),
    ] {
        if !text.is_empty() {
            std::fs::write(path, text).doing(|| format!("writing {path}"))?;
        }
    }
    if !request.shares_tag.is_empty() {
        mount_shares(&request.shares_tag)?;
    }
    Ok(volumes)
}

/// What the host shares, where no container sees it. What is mounted in it later
/// goes on to those containers' mounts that want it (HOST_TO_CONTAINER).
fn mount_shares(tag: &str) -> Result<(), AgentError> {
    let options = [("source", tag)];
    let mount = fs_mount::new("virtiofs", &options, Attr::MOUNT_ATTR_NODEV).map_err(|e| {
        AgentError::invalid(
            "shares_tag",
            format!("{e}; is there a virtio-fs device {tag}?"),
        )
    })?;
    fs_mount::attach_at(mount, layout::SHARES)?;
    mount_change(layout::SHARES, MountPropagationFlags::SHARED)
        .doing(|| format!("sharing what is mounted in {}", layout::SHARES))
}

/// The scratch disk lives no longer than the pod, so it has no barriers to wait
/// for. What is deleted is given back to the host's disk. Quotas where the file
/// system was made with them.
fn mount_scratch(source: &str) -> Result<std::os::fd::OwnedFd, AgentError> {
    let options = [
        ("source", source),
        ("nobarrier", ""),
        ("discard", ""),
        ("prjquota", ""),
    ];
    fs_mount::new("ext4", &options, Attr::MOUNT_ATTR_NODEV)
        .or_else(|_| fs_mount::new("ext4", &options[..3], Attr::MOUNT_ATTR_NODEV))
        .map_err(|e| match e {
            AgentError::System { source: errno, .. } => AgentError::System {
                doing: format!("mounting the scratch disk {source}"),
                source: errno,
                remedy: match errno {
                    Errno::INVAL => "make it with mkfs.ext4 -O quota,project,^has_journal",
                    _ => "",
                },
            },
            other => other,
        })
}

/// Undoes what [`mount_all`] did of its work.
fn unmount_all(request: &SetupSandboxRequest) {
    let volumes = request
        .volumes
        .iter()
        .map(|v| format!("{}/{}", layout::MEMORY_VOLUMES, v.name));
    let own = [layout::SHARES, layout::SHM, layout::SCRATCH].map(str::to_owned);
    for path in volumes.chain(own) {
        // Some were never mounted.
        let _ = unmount(path, UnmountFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    #[test]
    fn sysctl_names_map_to_files() {
        for (key, path) in [
            ("kernel.shmmax", "/proc/sys/kernel/shmmax"),
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "/proc/sys/net/ipv4/conf/eth0.1/forwarding",
            ),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "/proc/sys/net/ipv4/conf/eth0.1/forwarding",
            ),
        ] {
            assert_eq!(sysctl_path(key).unwrap(), Path::new(path));
        }
    }

    #[test]
    fn sysctl_names_that_climb_are_refused() {
        for key in [
            "",
            "kernel",
            "kernel/../../etc/passwd",
            "..",
            "kernel..x",
            "kernel.//.x",
            "kernel./.x",
            "/kernel/x",
            "a.b/../c",
        ] {
            let error = sysctl_path(key).unwrap_err().into_wire();
            assert_eq!(error.field, format!("sysctls[{key}]"));
        }
    }

    #[test]
    fn a_request_without_entropy_is_refused() {
        let request = SetupSandboxRequest {
            sandbox_id: "pod".to_owned(),
            hostname: "pod".to_owned(),
            unix_time_ns: 1,
            ..SetupSandboxRequest::default()
        };
        assert_eq!(check(&request).unwrap_err().into_wire().field, "entropy");
    }

    proptest! {
        #[test]
        fn a_sysctl_stays_below_its_directory(key in "[a-z./]{0,24}") {
            if let Ok(path) = sysctl_path(&key) {
                prop_assert!(path.starts_with("/proc/sys"));
                prop_assert!(path.components().all(|c| c != std::path::Component::ParentDir));
            }
        }
    }
}
