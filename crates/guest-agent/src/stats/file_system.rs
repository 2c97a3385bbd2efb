//! What a writable layer uses of the scratch disk: by the file system's own
//! account (a project quota) where the layer has one, else by looking.

use super::Budget;
use crate::sys::quota;
use guest_api::proto::FileSystemUsage;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use std::os::fd::OwnedFd;

/// Bytes of one of stat(2)'s blocks.
const BLOCK: u64 = 512;
/// How deep a layer is looked at.
const MAX_DEPTH: usize = 64;

/// Of the layer in the directory `layer`; `None` where there is none.
pub(super) fn of_layer(layer: &str, budget: &mut Budget) -> Option<FileSystemUsage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(layer, flags, Mode::empty()).ok()?;
    let whole = of_whole(layer)?;
    let accounted = match quota::project_of(&dir) {
        Ok(project @ 1..) => quota::project_usage(&dir, project).ok(),
        _ => None,
    };
    let (used_bytes, used_inodes) = accounted.unwrap_or_else(|| walk(&dir, budget));
    Some(FileSystemUsage {
        used_bytes,
        used_inodes,
        ..whole
    })
}

/// Of the whole file system that `path` is in.
pub(super) fn of_whole(path: &str) -> Option<FileSystemUsage> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(FileSystemUsage {
        used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        used_inodes: stat.f_files.saturating_sub(stat.f_ffree),
        capacity_bytes: bytes(stat.f_blocks),
        available_bytes: bytes(stat.f_bavail),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

/// Bytes and number of what is below `top`. Its container changes it meanwhile,
/// so no link is followed: not even one that takes a directory's place.
fn walk(top: &OwnedFd, budget: &mut Budget) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0_u64, 0_u64);
    let mut todo = vec![(String::from("."), 0)];
    while let Some((path, depth)) = todo.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let Ok(dir) = rustix::fs::openat2(top, &path, flags, Mode::empty(), resolve) else {
            continue;
        };
        let Ok(entries) = Dir::read_from(&dir) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if budget.files == 0 {
                return (bytes, inodes);
            }
            budget.files -= 1;
            let Ok(stat) = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            bytes = bytes.saturating_add(blocks.saturating_mul(BLOCK));
            inodes += 1;
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if let (true, Ok(name)) = (is_dir && depth < MAX_DEPTH, name.to_str()) {
                todo.push((format!("{path}/{name}"), depth + 1));
            }
        }
    }
    (bytes, inodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::BUDGET;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_layer_is_counted_and_links_are_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let layer = tmp.path().join("layer");
        fs::create_dir_all(layer.join("upper/dir")).unwrap();
        fs::write(layer.join("upper/dir/file"), vec![1; 100_000]).unwrap();
        fs::write(tmp.path().join("outside"), vec![1; 1_000_000]).unwrap();
        symlink(tmp.path(), layer.join("upper/out")).unwrap();
        let usage = of_layer(layer.to_str().unwrap(), &mut Budget { ..BUDGET }).unwrap();
        assert_eq!(usage.used_inodes, 4);
        assert!((100_000..500_000).contains(&usage.used_bytes));
        assert!(usage.capacity_bytes >= usage.available_bytes && usage.capacity_bytes > 0);
        let mut little = Budget { files: 2, ..BUDGET };
        let usage = of_layer(layer.to_str().unwrap(), &mut little).unwrap();
        assert_eq!((usage.used_inodes, little.files), (2, 0));
    }
}
