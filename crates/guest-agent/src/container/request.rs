//! A CreateContainer request, checked. What comes out of here needs no second
//! look; what only the container's root can tell (users, programs) comes later.

use super::caps::CapabilityPlan;
use crate::disks::Extent;
use crate::error::AgentError;
use guest_api::proto::{CreateContainerRequest, Process};
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
}

/// Longest container id: it is a directory's name.
const MAX_ID: usize = 128;
/// Most mounts of a container.
const MAX_MOUNTS: usize = 512;

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
    check_mounts(&request)?;
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
    })
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

fn check_mounts(request: &CreateContainerRequest) -> Result<(), AgentError> {
    if request.mounts.len() > MAX_MOUNTS {
        let problem = format!("more than {MAX_MOUNTS} mounts");
        return Err(AgentError::invalid("mounts", problem));
    }
    for (i, mount) in request.mounts.iter().enumerate() {
        let bad = |part: &str, problem: &str| {
            Err(AgentError::invalid(format!("mounts[{i}].{part}"), problem))
        };
        let climbs = |path: &str| path.split('/').any(|c| c == "..");
        let destination = &mount.destination;
        if !destination.starts_with('/') || has_nul(destination) || climbs(destination) {
            return bad("destination", "must be an absolute path without \"..\"");
        }
        if destination.split('/').all(|c| c.is_empty() || c == ".") {
            return bad("destination", "the root itself cannot be a mount");
        }
        let sub_path = &mount.sub_path;
        if sub_path.starts_with('/') || has_nul(sub_path) || climbs(sub_path) {
            return bad("sub_path", "must be a relative path without \"..\"");
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
    use guest_api::proto::{DiskExtent, Mount, Rlimit as WireRlimit};

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
    fn mounts_that_climb_are_refused() {
        for (destination, sub_path, want) in [
            ("data", "", "mounts[0].destination"),
            ("/a/../b", "", "mounts[0].destination"),
            ("//.", "", "mounts[0].destination"),
            ("/data", "../x", "mounts[0].sub_path"),
            ("/data", "/x", "mounts[0].sub_path"),
        ] {
            let mut request = good();
            request.mounts.push(Mount {
                volume: "v".to_owned(),
                sub_path: sub_path.to_owned(),
                destination: destination.to_owned(),
                read_only: false,
                ..Mount::default()
            });
            assert_eq!(field(request), want);
        }
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
