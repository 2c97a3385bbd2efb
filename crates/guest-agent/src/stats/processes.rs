//! How many processes, open descriptors and sockets a cgroup's processes have.

use super::Budget;
use crate::cgroup::Cgroup;
use rustix::fs::{Dir, Mode, OFlags};
use rustix::process::Pid;
use std::os::fd::OwnedFd;

/// See the module's documentation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) processes: u64,
    pub(super) descriptors: u64,
    pub(super) sockets: u64,
}

/// Counts them, as far as `budget` goes; processes are counted in any case.
pub(super) fn count(cgroup: &Cgroup, budget: &mut Budget) -> Counts {
    let pids = cgroup.processes().unwrap_or_default();
    let mut counts = Counts {
        processes: pids.len() as u64,
        ..Counts::default()
    };
    for pid in pids {
        if budget.processes == 0 {
            break;
        }
        budget.processes -= 1;
        // One that has ended meanwhile has none.
        let Some(dir) = open_descriptors(pid) else {
            continue;
        };
        counts.descriptors += number_of(&dir);
        counts.sockets += sockets(&dir, budget);
    }
    counts
}

fn open_descriptors(pid: Pid) -> Option<OwnedFd> {
    let path = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// The kernel gives their number as the directory's size (since Linux 6.2).
fn number_of(dir: &OwnedFd) -> u64 {
    let size = rustix::fs::fstat(dir).map_or(0, |stat| stat.st_size);
    u64::try_from(size).unwrap_or(0)
}

fn sockets(dir: &OwnedFd, budget: &mut Budget) -> u64 {
    let mut count = 0;
    let Ok(entries) = Dir::read_from(dir) else {
        return 0;
    };
    for entry in entries.filter_map(Result::ok) {
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        if budget.descriptors == 0 {
            break;
        }
        budget.descriptors -= 1;
        // The link's target, without opening what it stands for.
        let target = rustix::fs::readlinkat(dir, entry.file_name(), Vec::new());
        if target.is_ok_and(|target| target.to_bytes().starts_with(b"socket:[")) {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::BUDGET;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_and_sockets_of_processes_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::at(dir.path().to_str().unwrap().to_owned());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let list = format!("{}\n4194304\n", child.id());
        std::fs::write(dir.path().join("cgroup.procs"), list).unwrap();
        let proc = format!("/proc/{}", child.id());
        // Once it has answered it opens nothing more.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"x").unwrap();
        ours.read_exact(&mut [0]).unwrap();
        // Other tests' threads may have given it more than its own.
        let links: Vec<_> = std::fs::read_dir(format!("{proc}/fd"))
            .unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
            .collect();
        let is_socket = |link: &std::path::PathBuf| link.to_string_lossy().starts_with("socket:");
        let sockets = links.iter().filter(|link| is_socket(link)).count();
        let want = Counts {
            processes: 2,
            descriptors: links.len() as u64,
            sockets: sockets as u64,
        };
        assert!(links.len() >= 3 && sockets >= 1);
        assert_eq!(count(&cgroup, &mut Budget { ..BUDGET }), want);
        let mut none = Budget {
            processes: 0,
            ..BUDGET
        };
        assert_eq!(count(&cgroup, &mut none).descriptors, 0);
        let mut little = Budget {
            descriptors: 1,
            ..BUDGET
        };
        assert_eq!(count(&cgroup, &mut little).sockets, 0);
        drop(stdin);
        child.wait().unwrap();
    }
}
