//! What is mounted where, by /proc/self/mountinfo: newer system calls for it
//! (listmount, statmount) are missing on kernels that are in use.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Whether something is mounted beneath the directory `dir`, which is on the mount
/// with the id `mount`.
///
/// # Errors
/// If /proc cannot be read.
pub(crate) fn any_beneath(dir: BorrowedFd<'_>, mount: u64) -> io::Result<bool> {
    let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    let mounts = fs::read(MOUNTINFO)?;
    Ok(any_in(&mounts, path.as_os_str().as_bytes(), mount))
}

/// What the mount with the id `mount` shows: a path in its file system; `None` if there
/// is no such mount.
///
/// # Errors
/// If /proc cannot be read.
pub(crate) fn root_of(mount: u64) -> io::Result<Option<PathBuf>> {
    Ok(root_in(&fs::read(MOUNTINFO)?, mount))
}

fn root_in(mountinfo: &[u8], mount: u64) -> Option<PathBuf> {
    mountinfo.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = str::from_utf8(fields.next()?).ok()?;
        let root = fields.nth(2)?;
        (id.parse() == Ok(mount)).then(|| OsString::from_vec(unescape(root)).into())
    })
}

/// A line: id, parent's id, device, root, mount point, and more.
fn any_in(mountinfo: &[u8], dir: &[u8], mount: u64) -> bool {
    mountinfo.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let parent = fields.nth(1).and_then(|id| str::from_utf8(id).ok());
        parent.and_then(|id| id.parse().ok()) == Some(mount)
            && fields
                .nth(2)
                .is_some_and(|at| is_beneath(&unescape(at), dir))
    })
}

fn is_beneath(path: &[u8], dir: &[u8]) -> bool {
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.len() > 1 && rest[0] == b'/')
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .and_then(|digits| str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if *first == b'\\' => {
                bytes.push(code);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const MOUNTS: &[u8] = b"\
21 1 8:1 / / rw - ext4 /dev/vda rw
30 21 0:5 / /srv/a\\040b/in rw shared:1 - tmpfs tmpfs rw
31 30 0:6 /x\\040y /srv/a\\040b/in/deeper rw - tmpfs tmpfs rw
32 21 0:7 / /srv/other rw - tmpfs tmpfs rw
";

    #[test]
    fn only_what_is_beneath_counts() {
        for (dir, mount, want) in [
            ("/srv/a b", 21, true),
            ("/srv", 21, true),
            ("/", 21, true),
            ("/srv/a b/in", 30, true),
            ("/srv/a b/in/deeper", 31, false),
            ("/srv/a b/in", 21, false),
            ("/srv/oth", 21, false),
            ("/srv/other", 21, false),
            ("/home", 21, false),
        ] {
            assert_eq!(any_in(MOUNTS, dir.as_bytes(), mount), want, "{dir} {mount}");
        }
    }

    #[test]
    fn a_mount_s_root_is_found() {
        assert_eq!(root_in(MOUNTS, 30), Some("/".into()));
        assert_eq!(root_in(MOUNTS, 31), Some("/x y".into()));
        assert_eq!(root_in(MOUNTS, 3), None);
        assert_eq!(root_in(b"3 1 0:1", 3), None);
    }

    #[test]
    fn this_process_s_mounts_are_found() {
        use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
        let root = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        let stat = rustix::fs::statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).unwrap();
        // At least /proc.
        assert!(any_beneath(root.as_fd(), stat.stx_mnt_id).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let empty = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let stat = rustix::fs::statx(&empty, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).unwrap();
        assert!(!any_beneath(empty.as_fd(), stat.stx_mnt_id).unwrap());
    }

    #[test]
    fn a_broken_line_is_passed_by() {
        for text in ["", "\n", "1", "1 x 0:1 / /a/b", "1 21", "1 21 0:1 /"] {
            assert!(!any_in(text.as_bytes(), b"/a", 21), "{text:?}");
        }
        assert_eq!(unescape(b"\\040\\9\\12\\"), b" \\9\\12\\");
    }
}
