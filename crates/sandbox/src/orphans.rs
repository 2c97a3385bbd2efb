//! Processes and directories that belong to no record: what a killed daemon
//! left in the middle of something. Only what lies under our own directories.

use crate::process_end::ProcessEnd;
use crate::vmm;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A VMM's process and the directory it works in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    pid: u32,
    dir: PathBuf,
}

/// The VMM processes whose directories lie where this process sees them, whosever
/// they are.
fn vmms() -> Vec<Found> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            if !is_vmm(&line) {
                return None;
            }
            let cwd = entry.path().join("cwd");
            let dir = without_mark(fs::read_link(&cwd).ok()?);
            is_at(&cwd.metadata().ok()?, &dir).then_some(Found { pid, dir })
        })
        .collect()
}

/// Whether a directory is the one at that path, or was before its removal. The path
/// alone says nothing: it is that of the process's own mount namespace, where another
/// daemon's directories may have the names of ours.
fn is_at(dir: &Metadata, path: &Path) -> bool {
    if dir.nlink() > 0 {
        return path.metadata().is_ok_and(|at| is_same(dir, &at));
    }
    let left = path.ancestors().find_map(|above| above.metadata().ok());
    left.is_some_and(|above| above.dev() == dir.dev())
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// [`vmms`], on a thread that may wait: a process that hangs can hold up who
/// reads its command line.
async fn all_vmms() -> Vec<Found> {
    tokio::task::spawn_blocking(vmms).await.unwrap_or_default()
}

/// Whether a command line is a VMM's.
fn is_vmm(line: &[u8]) -> bool {
    let program = line.split(|b| *b == 0).next().unwrap_or_default();
    Path::new(OsStr::from_bytes(program)).file_name() == Some(OsStr::new(vmm::PROGRAM))
}

/// The path of a directory that was removed meanwhile, without the kernel's mark.
fn without_mark(dir: PathBuf) -> PathBuf {
    match dir.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => PathBuf::from(OsStr::from_bytes(path)),
        None => dir,
    }
}

/// Ends every VMM whose directory is `dir`.
pub(crate) async fn end_vmms_of(dir: &Path, limit: Duration) {
    for found in all_vmms().await {
        if found.dir == dir {
            end(&found, limit).await;
        }
    }
}

async fn end(found: &Found, limit: Duration) {
    // By descriptor, so that no other process of that number is hit.
    let pid = i32::try_from(found.pid).ok().and_then(Pid::from_raw);
    let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return;
    };
    if !all_vmms().await.contains(found) {
        return;
    }
    let _ = pidfd_send_signal(&process, Signal::KILL);
    let Ok(process) = ProcessEnd::new(process) else {
        return;
    };
    if tokio::time::timeout(limit, process.wait()).await.is_err() {
        tracing::error!(pid = found.pid, "a VMM does not end after SIGKILL");
    }
}

/// Ends VMMs and removes directories below `<run>/pods` and `<root>/pods` whose
/// name is none of `known`.
pub(crate) async fn sweep(root: &Path, run: &Path, known: &BTreeSet<String>, limit: Duration) {
    let ours = run.join("pods");
    for found in all_vmms().await {
        let stray = found.dir.parent() == Some(&ours)
            && found
                .dir
                .file_name()
                .and_then(OsStr::to_str)
                .is_none_or(|id| !known.contains(id));
        if stray {
            tracing::warn!(pid = found.pid, dir = %found.dir.display(), "ending a VMM of no sandbox");
            end(&found, limit).await;
        }
    }
    for dir in [ours, root.join("pods")] {
        for name in stray_names(&dir, known) {
            let path = dir.join(name);
            tracing::warn!(path = %path.display(), "removing a directory of no sandbox");
            if let Err(error) = crate::undo::remove_dir_now(&path) {
                tracing::warn!(%error, "it stays");
            }
        }
    }
}

fn stray_names(dir: &Path, known: &BTreeSet<String>) -> Vec<OsString> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .filter(|name| name.to_str().is_none_or(|id| !known.contains(id)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_is_known_by_its_program() {
        assert!(is_vmm(b"/usr/lib/spherule-vmm\0--dir\0.\0"));
        assert!(is_vmm(b"spherule-vmm\0"));
        assert!(!is_vmm(b"vim\0spherule-vmm\0"));
        assert!(!is_vmm(b""));
        assert_eq!(
            without_mark("/run/x (deleted)".into()),
            PathBuf::from("/run/x")
        );
    }

    /// A process that is a VMM by its name, working in a directory; in a mount
    /// namespace of its own with another file system there, if `elsewhere`.
    fn vmm_in(dir: &Path, elsewhere: bool) -> std::process::Child {
        let program = dir.join(vmm::PROGRAM);
        let _ = std::os::unix::fs::symlink("/bin/sleep", &program);
        let work = dir.join("run/pods/stray");
        fs::create_dir_all(&work).unwrap();
        let mount = if elsewhere {
            "mount -t tmpfs none $1 && mkdir -p $1/pods/stray &&"
        } else {
            ""
        };
        let script = format!("{mount} cd $1/pods/stray && echo there && exec $2 100");
        let mut command = std::process::Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let mut child = command
            .args(["--mount", "sh", "-ec", &script, "sh"])
            .args([&dir.join("run"), &program])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        let stdout = child.stdout.as_mut().unwrap();
        std::io::Read::read_exact(stdout, &mut said).unwrap();
        child
    }

    #[tokio::test]
    async fn vmm_of_no_record_is_ended_unless_it_is_another_namespaces() {
        for (elsewhere, removed) in [(false, false), (false, true), (true, false), (true, true)] {
            let dir = tempfile::tempdir().unwrap();
            let mut vmm = vmm_in(dir.path(), elsewhere);
            while !is_vmm(&fs::read(format!("/proc/{}/cmdline", vmm.id())).unwrap()) {}
            if removed {
                let seen = format!("/proc/{}/root", vmm.id());
                let seen = format!("{seen}{}", dir.path().join("run/pods/stray").display());
                fs::remove_dir(seen).unwrap();
            }
            let (root, run) = (dir.path().join("root"), dir.path().join("run"));
            sweep(&root, &run, &BTreeSet::new(), Duration::from_secs(10)).await;
            let lives = vmm.try_wait().unwrap().is_none();
            vmm.kill().unwrap();
            vmm.wait().unwrap();
            assert_eq!(lives, elsewhere, "removed: {removed}");
        }
    }

    #[tokio::test]
    async fn directories_of_no_record_go_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (root, run) = (dir.path().join("root"), dir.path().join("run"));
        for path in ["root/pods/a/x", "root/pods/b/x", "run/pods/b", "root/other"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let known = BTreeSet::from(["a".to_owned()]);
        sweep(&root, &run, &known, Duration::from_secs(1)).await;
        assert!(root.join("pods/a/x").exists() && root.join("other").exists());
        assert!(!root.join("pods/b").exists() && !run.join("pods/b").exists());
    }
}
