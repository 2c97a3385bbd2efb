//! A CreateContainer request, checked. What comes out of here needs no second
//! look; what only the container's root can tell (users, programs) comes later.

use super::caps::CapabilityPlan;
use super::mounts::{self, Wanted};
use super::{devices, hidden, image_volumes};
use crate::disks::Extent;
use crate::error::AgentError;
use crate::sys::seccomp::{self, Filter};
use guest_api::proto::pid_namespace::Mode;
use guest_api::proto::{CreateContainerRequest, PathRules, Process};
use rustix::process::{Resource, Rlimit};
use std::ffi::CString;

/// What a container is made from.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) request: CreateContainerRequest,
    pub(crate) process: Process,
    pub(crate) image: Extent,
    pub(crate) args: Vec<CString>,
    pub(crate) capabilities: CapabilityPlan,
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) seccomp: Option<Filter>,
    /// What each of the request's mounts shows.
    pub(crate) mounts: Vec<Wanted>,
    /// Of a container that is not privileged.
    pub(crate) paths: PathRules,
    pub(crate) pids: Pids,
}

impl Checked {
    /// The container mounts the volume or has its device.
    pub(crate) fn has_volume(&self, name: &str) -> bool {
        let mut mounts = self.request.mounts.iter();
        let mut devices = self.request.devices.iter();
        mounts.any(|mount| mount.volume == name) || devices.any(|d| d.volume == name)
    }
}

/// The PID namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pids {
    /// As the sandbox says.
    Default,
    /// Its own.
    Own,
    /// The pod's.
    Pod,
    /// That of another container, by id.
    Target(String),
}

/// Longest container id: it is a directory's name.
const MAX_ID: usize = 128;

/// Checks all fields of `request`.
pub(crate) fn check(request: CreateContainerRequest) -> Result<Checked, AgentError> {
    check_id(&request.container_id)?;
    let Some(image) = &request.image else {
        return Err(AgentError::invalid("image", "the container has no image"));
    };
    let image = Extent::check(image, "image")?;
    let Some(process) = request.process.clone() else {
        return Err(AgentError::invalid(
            "process",
            "the container has no process",
        ));
    };
    let args = check_args(&process)?;
    check_environment(&process)?;
    let mounts = mounts::check(&request.mounts)?;
    image_volumes::check(&request.image_volumes)?;
    devices::check(&request.devices)?;
    let paths = hidden::check(request.paths.as_ref())?;
    let pids = check_pid_namespace(&request)?;
    let seccomp = check_seccomp(&process)?;
    if !(process.cwd.is_empty() || process.cwd.starts_with('/')) || has_nul(&process.cwd) {
        return Err(AgentError::invalid(
            "process.cwd",
            "the working directory must be an absolute path",
        ));
    }
    if !(-1000..=1000).contains(&process.oom_score_adj) {
        return Err(AgentError::invalid(
            "process.oom_score_adj",
            "the OOM score adjustment must be from -1000 to 1000",
        ));
    }
    let capabilities = if request.privileged {
        CapabilityPlan::privileged()
    } else {
        CapabilityPlan::from_request(&process.capabilities.clone().unwrap_or_default())?
    };
    let rlimits = rlimits(&process)?;
    Ok(Checked {
        request,
        process,
        image,
        args,
        capabilities,
        rlimits,
        seccomp,
        mounts,
        paths,
        pids,
    })
}

fn check_pid_namespace(request: &CreateContainerRequest) -> Result<Pids, AgentError> {
    let Some(wanted) = &request.pid_namespace else {
        return Ok(Pids::Default);
    };
    let pids = match Mode::try_from(wanted.mode) {
        Ok(Mode::Target) => {
            check_id(&wanted.target).map_err(|_| {
                let problem = "no container's id is given";
                AgentError::invalid("pid_namespace.target", problem)
            })?;
            return Ok(Pids::Target(wanted.target.clone()));
        }
        Ok(Mode::Unspecified) => Pids::Default,
        Ok(Mode::Container) => Pids::Own,
        Ok(Mode::Pod) => Pids::Pod,
        Err(_) => {
            let problem = format!("unknown PID namespace mode {}", wanted.mode);
            return Err(AgentError::invalid("pid_namespace.mode", problem));
        }
    };
    if wanted.target.is_empty() {
        Ok(pids)
    } else {
        let problem = "only the mode TARGET has a target";
        Err(AgentError::invalid("pid_namespace.target", problem))
    }
}

fn check_seccomp(process: &Process) -> Result<Option<Filter>, AgentError> {
    if process.seccomp.is_empty() {
        return Ok(None);
    }
    let filter = Filter::from_bytes(&process.seccomp).ok_or_else(|| {
        let problem = format!(
            "a seccomp filter has 1 to {} instructions of 8 bytes",
            seccomp::MAX_INSTRUCTIONS
        );
        AgentError::invalid("process.seccomp", problem)
    })?;
    Ok(Some(filter))
}

/// An id becomes the name of a cgroup and of directories.
pub(crate) fn check_id(id: &str) -> Result<(), AgentError> {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bytes = id.as_bytes();
    if bytes.is_empty()
        || bytes.len() > MAX_ID
        || !bytes.iter().all(allowed)
        || !bytes[0].is_ascii_alphanumeric()
    {
        return Err(AgentError::invalid(
            "container_id",
            "a container's id is 1 to 128 letters, digits, '-', '_' or '.'",
        ));
    }
    Ok(())
}

fn has_nul(text: &str) -> bool {
    text.as_bytes().contains(&0)
}

fn check_args(process: &Process) -> Result<Vec<CString>, AgentError> {
    match process.args.first() {
        None => return Err(AgentError::invalid("process.args", "no command")),
        Some(program) if program.is_empty() => {
            return Err(AgentError::invalid("process.args[0]", "no command"));
        }
        Some(_) => {}
    }
    let convert = |(i, arg): (usize, &String)| {
        CString::new(arg.as_str())
            .map_err(|_| AgentError::invalid(format!("process.args[{i}]"), "contains a NUL byte"))
    };
    process.args.iter().enumerate().map(convert).collect()
}

fn check_environment(process: &Process) -> Result<(), AgentError> {
    for (i, entry) in process.env.iter().enumerate() {
        let named = entry
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty());
        if !named || has_nul(entry) {
            return Err(AgentError::invalid(
                format!("process.env[{i}]"),
                "an environment entry is NAME=VALUE without NUL bytes",
            ));
        }
    }
    Ok(())
}

fn rlimits(process: &Process) -> Result<Vec<(Resource, Rlimit)>, AgentError> {
    let mut out = Vec::new();
    for (i, limit) in process.rlimits.iter().enumerate() {
        let Some(resource) = resource(&limit.kind) else {
            return Err(AgentError::invalid(
                format!("process.rlimits[{i}].kind"),
                format!("unknown resource limit \"{}\"", limit.kind),
            ));
        };
        if limit.soft > limit.hard {
            return Err(AgentError::invalid(
                format!("process.rlimits[{i}].soft"),
                "the soft limit is above the hard limit",
            ));
        }
        let value = |n: u64| (n != u64::MAX).then_some(n);
        let rlimit = Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        };
        out.push((resource, rlimit));
    }
    Ok(out)
}

fn resource(kind: &str) -> Option<Resource> {
    Some(match kind {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_api::proto::{Device, DiskExtent, PidNamespace, Rlimit as WireRlimit};

    fn good() -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: "c1".to_owned(),
            image: Some(DiskExtent {
                device: "vda".to_owned(),
                offset: 0,
                length: 4096,
            }),
            process: Some(Process {
                args: vec!["sh".to_owned()],
                ..Process::default()
            }),
            ..CreateContainerRequest::default()
        }
    }

    fn field(request: CreateContainerRequest) -> String {
        check(request).unwrap_err().into_wire().field
    }

    fn with_process(change: impl FnOnce(&mut Process)) -> CreateContainerRequest {
        let mut request = good();
        change(request.process.as_mut().unwrap());
        request
    }

    #[test]
    fn the_least_request_passes() {
        check(good()).unwrap();
    }

    #[test]
    fn ids_that_are_paths_are_refused() {
        for id in [
            "",
            ".",
            "..",
            "a/b",
            ".hidden",
            "-x",
            "a b",
            &"x".repeat(129),
        ] {
            assert_eq!(check_id(id).unwrap_err().into_wire().field, "container_id");
        }
        check_id("0a1b-2_3.4").unwrap();
    }

    #[test]
    fn a_wrong_process_names_its_field() {
        let cases = [
            (with_process(|p| p.args.clear()), "process.args"),
            (with_process(|p| p.args[0].clear()), "process.args[0]"),
            (
                with_process(|p| p.args.push("a\0".into())),
                "process.args[1]",
            ),
            (with_process(|p| p.env.push("=x".into())), "process.env[0]"),
            (with_process(|p| p.env.push("x".into())), "process.env[0]"),
            (with_process(|p| p.cwd = "tmp".into()), "process.cwd"),
            (
                with_process(|p| p.oom_score_adj = 1001),
                "process.oom_score_adj",
            ),
        ];
        for (request, want) in cases {
            assert_eq!(field(request), want);
        }
    }

    #[test]
    fn a_pid_namespace_has_a_target_exactly_where_it_joins_one() {
        let with = |mode: i32, target: &str| {
            let mut request = good();
            let target = target.to_owned();
            request.pid_namespace = Some(PidNamespace { mode, target });
            request
        };
        let target = i32::from(Mode::Target);
        assert_eq!(field(with(target, "")), "pid_namespace.target");
        assert_eq!(field(with(target, "../x")), "pid_namespace.target");
        assert_eq!(field(with(Mode::Pod.into(), "c2")), "pid_namespace.target");
        assert_eq!(field(with(99, "")), "pid_namespace.mode");
        let pids = |request| check(request).unwrap().pids;
        assert_eq!(pids(with(target, "c2")), Pids::Target("c2".to_owned()));
        assert_eq!(pids(with(Mode::Pod.into(), "")), Pids::Pod);
        assert_eq!(pids(with(Mode::Container.into(), "")), Pids::Own);
        assert_eq!(pids(with(0, "")), Pids::Default);
        assert_eq!(pids(good()), Pids::Default);
    }

    #[test]
    fn a_seccomp_filter_of_half_instructions_is_refused() {
        let request = with_process(|p| p.seccomp = vec![0; 12]);
        assert_eq!(field(request), "process.seccomp");
        let request = with_process(|p| p.seccomp = vec![0; 16]);
        assert!(check(request).unwrap().seccomp.is_some());
        assert!(check(good()).unwrap().seccomp.is_none());
    }

    #[test]
    fn devices_are_below_dev_and_named_by_their_place() {
        let with = |path: &str, destination: &str| {
            let mut request = good();
            request.devices.push(Device {
                path: path.to_owned(),
                destination: destination.to_owned(),
                ..Device::default()
            });
            request
        };
        for path in ["/proc/kcore", "dev/fuse", "/dev/../proc/x", "/dev", ""] {
            assert_eq!(field(with(path, "/dev/x")), "devices[0].path", "{path}");
        }
        assert_eq!(field(with("/dev/fuse", "/")), "devices[0].destination");
        check(with("/dev/fuse", "/dev/net/fuse")).unwrap();
        let mut of_volume = with("", "/dev/xvda");
        of_volume.devices[0].volume = "data".to_owned();
        check(of_volume).unwrap();
        let mut both = with("/dev/fuse", "/dev/xvda");
        both.devices[0].volume = "data".to_owned();
        assert_eq!(field(both), "devices[0].path");
    }

    #[test]
    fn unknown_and_twisted_rlimits_are_refused() {
        let limit = |kind: &str, soft, hard| WireRlimit {
            kind: kind.to_owned(),
            soft,
            hard,
        };
        let request = with_process(|p| p.rlimits.push(limit("RLIMIT_X", 1, 1)));
        assert_eq!(field(request), "process.rlimits[0].kind");
        let request = with_process(|p| p.rlimits.push(limit("RLIMIT_NOFILE", 2, 1)));
        assert_eq!(field(request), "process.rlimits[0].soft");
        let request = with_process(|p| p.rlimits.push(limit("RLIMIT_CORE", 0, u64::MAX)));
        assert_eq!(check(request).unwrap().rlimits[0].1.maximum, None);
    }
}
