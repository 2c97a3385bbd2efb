//! SetupSandbox: what all containers of the pod share.

use crate::disks::{Disks, Extent, Partition};
use crate::error::{AgentError, Doing};
use crate::fs_mount;
use crate::layout;
use crate::pid_namespace::SharedPidNamespace;
use crate::sys::entropy;
use crate::volumes::{self, Volumes};
use guest_api::proto::{SetupSandboxRequest, SetupSandboxResponse};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags as Attr, UnmountFlags, unmount};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::path::PathBuf;

/// Size of /dev/shm where the request names none.
const DEFAULT_SHM: u64 = 64 << 20;
/// Least entropy taken as a seed.
const MIN_ENTROPY: usize = 32;

/// The pod, once set up.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Without what is new in a repeated request (time, entropy).
    request: SetupSandboxRequest,
    response: SetupSandboxResponse,
    /// Directories of the volumes, by name.
    pub(crate) volumes: Volumes,
    /// Where the pod's containers share one.
    pub(crate) pid_namespace: Option<SharedPidNamespace>,
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
        let scratch = check(request)?;
        set_clock(request.unix_time_ns)?;
        entropy::credit(&request.entropy).doing(|| "seeding the random number generator".into())?;
        rustix::system::sethostname(request.hostname.as_bytes())
            .doing(|| format!("setting the host name to {}", request.hostname))?;
        apply_sysctls(request)?;
        let mut partition = None;
        let made = mount_all(request, scratch.as_ref(), disks, &mut partition);
        let (volumes, pid_namespace) = match made {
            Ok(made) => made,
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
            ready_ns: boot_time_ns(),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        };
        Ok(Self {
            request: lasting(request),
            response,
            volumes,
            pid_namespace,
        })
    }

    /// The answer to the first request.
    pub(crate) fn response(&self) -> SetupSandboxResponse {
        self.response.clone()
    }
}

/// Nanoseconds since the kernel started.
pub(crate) fn boot_time_ns() -> u64 {
    to_ns(clock_gettime(ClockId::Boottime))
}

/// Nanoseconds since the epoch.
pub(crate) fn unix_time_ns() -> u64 {
    to_ns(clock_gettime(ClockId::Realtime))
}

fn to_ns(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

fn lasting(request: &SetupSandboxRequest) -> SetupSandboxRequest {
    SetupSandboxRequest {
        unix_time_ns: 0,
        entropy: Vec::new(),
        ..request.clone()
    }
}

/// Checks everything before anything is done; returns the scratch extent.
fn check(request: &SetupSandboxRequest) -> Result<Option<Extent>, AgentError> {
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
    for key in request.sysctls.keys() {
        sysctl_path(key)?;
    }
    volumes::check(&request.volumes)?;
    request
        .scratch
        .as_ref()
        .map(|extent| Extent::check(extent, "scratch"))
        .transpose()
}

fn set_clock(unix_time_ns: u64) -> Result<(), AgentError> {
    let time = Timespec {
        tv_sec: i64::try_from(unix_time_ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(unix_time_ns % 1_000_000_000).unwrap_or(0),
    };
    clock_settime(ClockId::Realtime, time).doing(|| "setting the clock".into())
}

fn apply_sysctls(request: &SetupSandboxRequest) -> Result<(), AgentError> {
    for (key, value) in &request.sysctls {
        let path = sysctl_path(key)?;
        std::fs::write(&path, value).map_err(|e| AgentError::Invalid {
            field: format!("sysctls[{key}]"),
            problem: format!("setting the sysctl {key} to \"{value}\" failed: {e}"),
        })?;
    }
    Ok(())
}

/// The file of a sysctl, which is written "net.ipv4.ip_forward" or, where an
/// interface's name contains dots, "net/ipv4/conf/eth0.1/forwarding".
fn sysctl_path(key: &str) -> Result<PathBuf, AgentError> {
    let slashes = match (key.find('/'), key.find('.')) {
        (Some(slash), Some(dot)) => slash < dot,
        (slash, _) => slash.is_some(),
    };
    let parts: Vec<&str> = key.split(if slashes { '/' } else { '.' }).collect();
    let wrong = |part: &&str| {
        part.is_empty() || *part == "." || *part == ".." || part.contains(['/', '\0'])
    };
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
) -> Result<(Volumes, Option<SharedPidNamespace>), AgentError> {
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
    let pid_namespace = request
        .share_process_namespace
        .then(SharedPidNamespace::create)
        .transpose()?;
    Ok((volumes, pid_namespace))
}

/// The scratch disk lives no longer than the pod, so it has no barriers to wait
/// for. Quotas where the file system was made with them.
fn mount_scratch(source: &str) -> Result<std::os::fd::OwnedFd, AgentError> {
    let options = [("source", source), ("nobarrier", ""), ("prjquota", "")];
    fs_mount::new("ext4", &options, Attr::MOUNT_ATTR_NODEV)
        .or_else(|_| fs_mount::new("ext4", &options[..2], Attr::MOUNT_ATTR_NODEV))
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
    for path in volumes.chain([layout::SHM.to_owned(), layout::SCRATCH.to_owned()]) {
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
