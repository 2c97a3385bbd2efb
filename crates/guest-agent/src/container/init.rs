//! A container's first process, from the fork to its program's exec. It builds
//! the container from inside, says so, waits for the start, and becomes the
//! program; a failure on the way goes to the agent in the wire's own words.

use super::handover::{Handover, Message};
use super::request::Checked;
use super::rights;
use super::rootfs::{self, Root, Sources};
use super::stdio::{self, ChildStdio};
use super::user::{self, Identity};
use crate::error::{AgentError, Doing};
use crate::layout;
use crate::rooted::Missing;
use crate::sys::process;
use nix::sched::CloneFlags;
use rustix::fs::{Access, AtFlags, FileType, Mode};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::AsFd;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs in the child that `fork_into` made. Returns the exit code, where it
/// did not become the program.
pub(crate) fn run(
    checked: &Checked,
    sources: &Sources,
    stdio: &ChildStdio,
    agent: &Handover,
) -> i32 {
    let Err(error) = become_program(checked, sources, stdio, agent);
    // Nobody to tell is nothing to do about.
    let _ = agent.send(&Message::Failed(error.into_wire()), None);
    1
}

fn become_program(
    checked: &Checked,
    sources: &Sources,
    stdio: &ChildStdio,
    agent: &Handover,
) -> Result<Infallible, AgentError> {
    let wanted = &checked.process;
    rustix::process::setsid().doing(|| "making a session".into())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // By the agent's /proc: the container's may be covered by a volume.
    std::fs::write("/proc/self/oom_score_adj", wanted.oom_score_adj.to_string())
        .doing(|| "setting the OOM score adjustment".into())?;
    // Only now: at the fork it would have taken the agent's own cgroup as root.
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
        .map_err(|e| Errno::from_raw_os_error(e as i32))
        .doing(|| "making a cgroup namespace".into())?;

    let users = &sources.users;
    users.become_root()?;
    let root = rootfs::enter(checked, sources)?;
    let identity = match &wanted.user {
        Some(user) => user::resolve(user)?,
        None => user::resolve(&guest_api::proto::User::default())?,
    };
    let ids = users.of(&identity)?;
    enter_working_directory(&root, &wanted.cwd, ids)?;
    let master = stdio::install(stdio, ids.0).doing(|| "setting up stdio".into())?;
    root.hide(checked)?;
    if checked.request.readonly_rootfs {
        root.make_read_only()?;
    }
    drop(root);

    agent
        .send(
            &Message::Ready(identity.clone()),
            master.as_ref().map(AsFd::as_fd),
        )
        .doing(|| "telling the agent".into())?;
    drop(master);
    if !agent.wait_for_start() {
        // The agent let go: the container is being removed.
        process::exit_now(1);
    }
    let program = Program::of_container(checked);
    start_program(checked, &identity, &program, || users.enter_with_mounts())
}

/// The program that a process of a container becomes.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// At least one; the first is what is looked for.
    pub(crate) args: &'a [CString],
    /// Besides the container's own, NAME=VALUE.
    pub(crate) env: &'a [String],
    pub(crate) terminal: bool,
}

impl<'a> Program<'a> {
    fn of_container(checked: &'a Checked) -> Self {
        Self {
            args: &checked.args,
            env: &[],
            terminal: checked.process.terminal,
        }
    }
}

/// The last steps, the same for a container's first process and for those that
/// are executed in it later: limits, `enter` the pod's user namespace, user,
/// rights, then the program.
pub(crate) fn start_program(
    checked: &Checked,
    identity: &Identity,
    program: &Program<'_>,
    enter: impl FnOnce() -> Result<(), AgentError>,
) -> Result<Infallible, AgentError> {
    take_rights(checked, identity, enter)?;
    exec(checked, identity, program)
}

/// [`start_program`] up to the program.
pub(crate) fn take_rights(
    checked: &Checked,
    identity: &Identity,
    enter: impl FnOnce() -> Result<(), AgentError>,
) -> Result<(), AgentError> {
    set_limits(checked)?;
    enter()?;
    rights::change_identity(checked, identity).doing(|| "changing to the container's user".into())
}

/// Enters the working directory, which is made (the user's own) if missing.
fn enter_working_directory(root: &Root, cwd: &str, ids: (Uid, Gid)) -> Result<(), AgentError> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let refuse = |e: Errno| {
        AgentError::invalid(
            "process.cwd",
            format!("entering the working directory {cwd}: {e}"),
        )
    };
    let missing = matches!(rustix::fs::stat(cwd), Err(Errno::NOENT));
    let dir = root
        .rooted()
        .open_or_make(cwd, Missing::Directory)
        .map_err(refuse)?;
    if missing {
        rustix::fs::chownat(&dir, "", Some(ids.0), Some(ids.1), AtFlags::EMPTY_PATH)
            .map_err(refuse)?;
    }
    rustix::process::fchdir(&dir).map_err(refuse)
}

fn set_limits(checked: &Checked) -> Result<(), AgentError> {
    // The agent's own soft limit is higher than select(2) bears; its hard limit
    // is the container's too.
    let files = Rlimit {
        current: Some(layout::DEFAULT_FILES),
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, files)
        .doing(|| "setting the limit of open files".into())?;
    for (i, (resource, limit)) in checked.rlimits.iter().enumerate() {
        rustix::process::setrlimit(*resource, *limit).map_err(|e| {
            let kind = checked.process.rlimits.get(i).map_or("", |l| &l.kind);
            AgentError::invalid(
                format!("process.rlimits[{i}]"),
                format!("setting {kind}: {e}"),
            )
        })?;
    }
    Ok(())
}

fn exec(
    checked: &Checked,
    identity: &Identity,
    program: &Program<'_>,
) -> Result<Infallible, AgentError> {
    let wanted = merge_environment(&checked.process.env, program.env);
    let env = environment(&wanted, &identity.home, program.terminal);
    let path_entry = env.iter().rev().find_map(|e| e.strip_prefix("PATH="));
    let args = program.args;
    let program = args.first().map_or("".into(), |a| a.to_string_lossy());
    let file = find_program(&program, path_entry.unwrap_or(DEFAULT_PATH))?;
    let env: Vec<CString> = env
        .iter()
        .filter_map(|e| CString::new(e.as_str()).ok())
        .collect();
    process::close_on_exec_from_three().doing(|| "closing descriptors".into())?;
    process::reset_signals();
    rights::load_seccomp(checked)?;
    let Err(error) = nix::unistd::execve(&file, args, &env);
    Err(exec_error(&program, Errno::from_raw_os_error(error as i32)))
}

fn exec_error(program: &str, error: Errno) -> AgentError {
    let problem = match error {
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        Errno::NOEXEC => "exec format error".to_owned(),
        Errno::ISDIR => "is a directory".to_owned(),
        error => error.to_string(),
    };
    AgentError::Exec {
        program: program.to_owned(),
        problem,
    }
}

/// `more` takes the place of what has the same name in `base`.
fn merge_environment(base: &[String], more: &[String]) -> Vec<String> {
    let name = |entry: &String| entry.split('=').next().map(str::to_owned);
    let kept = base
        .iter()
        .filter(|entry| !more.iter().any(|m| name(m) == name(entry)));
    kept.chain(more).cloned().collect()
}

/// The request's environment with what a program may rely on.
fn environment(wanted: &[String], home: &str, terminal: bool) -> Vec<String> {
    let has = |name: &str| {
        wanted
            .iter()
            .any(|e| e.split_once('=').is_some_and(|(n, _)| n == name))
    };
    let mut env = Vec::with_capacity(wanted.len() + 3);
    if !has("PATH") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !has("HOME") {
        env.push(format!("HOME={home}"));
    }
    if terminal && !has("TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env.extend_from_slice(wanted);
    env
}

/// The file of `program`, looked for in the directories of `path` where it is a
/// plain name. As the user that will run it.
fn find_program(program: &str, path: &str) -> Result<CString, AgentError> {
    let to_c = |file: String| CString::new(file).map_err(|_| exec_error(program, Errno::INVAL));
    if program.contains('/') {
        return to_c(program.to_owned());
    }
    let mut problem = "executable file not found in $PATH";
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let file = format!("{dir}/{program}");
        let Ok(stat) = rustix::fs::stat(&file) else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            continue;
        }
        if rustix::fs::access(&file, Access::EXEC_OK).is_ok() {
            return to_c(file);
        }
        problem = "permission denied";
    }
    Err(AgentError::Exec {
        program: program.to_owned(),
        problem: problem.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_environment_is_completed_not_changed() {
        let wanted = vec!["A=1".to_owned(), "HOME=/mine".to_owned()];
        let env = environment(&wanted, "/root", true);
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(env, [path.as_str(), "TERM=xterm", "A=1", "HOME=/mine"]);
        let wanted = vec!["PATH=/x".to_owned()];
        assert_eq!(environment(&wanted, "/h", false), ["HOME=/h", "PATH=/x"]);
    }

    #[test]
    fn a_later_process_may_change_the_environment() {
        let of = |list: &[&str]| list.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>();
        let merged = merge_environment(&of(&["A=1", "B=2"]), &of(&["A=3=4", "C="]));
        assert_eq!(merged, of(&["B=2", "A=3=4", "C="]));
    }

    #[test]
    fn a_program_is_found_in_the_first_directory_that_has_it() {
        let tmp = tempfile::tempdir().unwrap();
        for dir in ["a", "b", "c"] {
            fs::create_dir(tmp.path().join(dir)).unwrap();
        }
        // A directory of the name, then the program.
        fs::create_dir(tmp.path().join("a/tool")).unwrap();
        let file = tmp.path().join("b/tool");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let base = tmp.path().to_str().unwrap();
        let path = format!("{base}/none:{base}/a:{base}/b:{base}/c");
        let found = find_program("tool", &path).unwrap();
        assert_eq!(found.to_str().unwrap(), file.to_str().unwrap());
        assert_eq!(find_program("/x/y", "").unwrap().to_str().unwrap(), "/x/y");
    }

    #[test]
    fn a_missing_program_is_reported_as_by_other_runtimes() {
        let error = find_program("foo", "/nonexistent").unwrap_err();
        assert_eq!(
            error.to_string(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        assert_eq!(
            exec_error("/x", Errno::ACCESS).to_string(),
            "exec: \"/x\": permission denied"
        );
    }

    #[test]
    fn a_file_without_the_execute_bit_is_permission_denied() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("tool"), "").unwrap();
        let error = find_program("tool", tmp.path().to_str().unwrap()).unwrap_err();
        assert!(error.to_string().ends_with("permission denied"));
    }
}
