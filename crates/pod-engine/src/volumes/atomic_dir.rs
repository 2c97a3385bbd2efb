//! A directory whose files change all at once, laid out as the kubelet's:
//!
//! ```text
//! key -> ..data/key                       what its users open
//! ..data -> ..2026_11_23_01_02_03.000     replaced by rename
//! ..2026_11_23_01_02_03.000/key           the files
//! ```
//!
//! Nothing in it is ever changed but for the links. What was replaced stays for
//! [`GRACE`]: who came through the link before it was renamed finds the file behind it.
//! (The kubelet removes it at once; its users meet a file that is not there.) Whoever
//! ends in the middle of a write leaves what a later one sweeps away.

use super::payload::{File, Payload};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
/// How long older contents stay: far longer than it takes to follow a path, also in a
/// guest that has to ask for each part of it and waits for a processor meanwhile.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// Permission bits of directories, and of those that belong to a group.
const DIR_MODE: u32 = 0o755;
const GROUP_DIR_MODE: u32 = 0o2755;
/// What a group can always do with files that belong to it.
const GROUP_READS: u32 = 0o440;

/// Brings `dir` to hold `payload`, all of it belonging to `group`. Says whether older
/// contents are there, too: another call sweeps them away once [`GRACE`] has passed.
pub(super) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let payload = &with_group(payload, group);
    make_dir(dir, group)?;
    let old = fs::read_link(dir.join(DATA)).ok();
    let current = old.as_ref().and_then(|old| read(&dir.join(old)).ok());
    if current.as_ref() != Some(payload) {
        let name = format!("..{}", timestamp());
        let new = dir.join(&name);
        make_dir(&new, group)?;
        for (path, file) in payload {
            write_file(&new, path, file, group)?;
        }
        match fs::remove_file(dir.join(NEW_DATA)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(old) = old {
            replaced_now(&dir.join(old))?;
        }
        symlink(&name, dir.join(NEW_DATA))?;
        fs::rename(dir.join(NEW_DATA), dir.join(DATA))?;
    }
    sweep(dir, payload)
}

/// The files as they will be: those of a group are readable to it.
fn with_group(payload: &Payload, group: Option<u32>) -> Payload {
    let mut payload = payload.clone();
    if group.is_some() {
        payload
            .values_mut()
            .for_each(|file| file.mode |= GROUP_READS);
    }
    payload
}

/// Sets what a umask would change, and the group.
fn own(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        chown(path, None, group)?;
    }
    // After it: chown takes the bit that hands the group on.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn make_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mode = group.map_or(DIR_MODE, |_| GROUP_DIR_MODE);
    own(path, mode, group)
}

fn write_file(top: &Path, path: &str, file: &File, group: Option<u32>) -> io::Result<()> {
    for (at, _) in path.match_indices('/') {
        make_dir(&top.join(&path[..at]), group)?;
    }
    let path = top.join(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(&path)?.write_all(&file.content)?;
    own(&path, file.mode, group)
}

/// The files in a directory and those below it.
fn read(dir: &Path) -> io::Result<Payload> {
    let mut payload = Payload::new();
    let mut dirs = vec![String::new()];
    while let Some(below) = dirs.pop() {
        for entry in fs::read_dir(dir.join(&below))? {
            let entry = entry?;
            let name = entry.file_name().into_string();
            let name = name.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            let path = if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            };
            let meta = entry.metadata()?;
            if meta.is_dir() {
                dirs.push(path);
                continue;
            }
            let mode = meta.permissions().mode() & 0o7777;
            let content = fs::read(entry.path())?;
            payload.insert(path, File { content, mode });
        }
    }
    Ok(payload)
}

/// Notes in older contents when they were replaced.
fn replaced_now(dir: &Path) -> io::Result<()> {
    match fs::File::open(dir) {
        Ok(dir) => dir.set_modified(SystemTime::now()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the links that are missing, and removes what is of older contents and
/// nobody's any more. Says whether some of it is left.
fn sweep(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let top = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let links: BTreeSet<String> = payload.keys().map(top).collect();
    for name in &links {
        match symlink(format!("{DATA}/{name}"), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let current = fs::read_link(dir.join(DATA))?;
    let mut left = false;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let known = name == DATA
            || name == current.as_os_str()
            || name.to_str().is_some_and(|name| links.contains(name));
        if known {
            continue;
        }
        let meta = entry.metadata()?;
        if !meta.is_dir() {
            fs::remove_file(entry.path())?;
        } else if is_recent(meta.modified()?) {
            left = true;
        } else {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(left)
}

/// Whether [`GRACE`] has yet to pass since then. A time to come is of a clock that was
/// put back.
fn is_recent(then: SystemTime) -> bool {
    then.elapsed().is_ok_and(|age| age < GRACE)
}

/// The time as the kubelet writes it into the name, to the nanosecond.
fn timestamp() -> String {
    let text = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    text.replace(['-', 'T', ':'], "_").replace('Z', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |(path, text): &(&str, &str)| {
            let content = text.as_bytes().to_vec();
            (
                (*path).to_owned(),
                File {
                    content,
                    mode: 0o640,
                },
            )
        };
        files.iter().map(file).collect()
    }

    /// Everything but the directory with the time in its name.
    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("..2"))
            .collect();
        names.sort();
        names
    }

    fn generations(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count() - names(dir).len()
    }

    /// Has all that is there be as old as if the grace had passed.
    fn age(dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                let then = SystemTime::now() - GRACE;
                let dir = fs::File::open(entry.path()).unwrap();
                dir.set_modified(then).unwrap();
            }
        }
    }

    #[test]
    fn contents_are_swapped_and_what_is_gone_goes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap();
        assert_eq!(names(dir), ["..data", "a", "d"]);
        assert_eq!(fs::read_to_string(dir.join("d/e")).unwrap(), "2");
        let mode = fs::metadata(dir.join("a")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o640);
        let before = fs::read_link(dir.join(DATA)).unwrap();
        write(dir, &payload(&[("a", "1"), ("d/e", "2")]), None).unwrap();
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);
        let changed = payload(&[("a", "3"), ("b", "4")]);
        assert!(write(dir, &changed, None).unwrap());
        assert_eq!(names(dir), ["..data", "a", "b"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        age(dir);
        assert!(!write(dir, &changed, None).unwrap());
        assert_eq!(generations(dir), 1);
        write(dir, &Payload::new(), None).unwrap();
        assert_eq!(names(dir), ["..data"]);
    }

    #[test]
    fn what_was_replaced_stays_for_who_is_on_the_way_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &payload(&[("a", "1")]), None).unwrap();
        let on_the_way = dir.join(fs::read_link(dir.join(DATA)).unwrap());
        // Made long ago, replaced just now.
        age(dir);
        for text in ["2", "3"] {
            assert!(write(dir, &payload(&[("a", text)]), None).unwrap());
            assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), text);
        }
        assert_eq!(fs::read_to_string(on_the_way.join("a")).unwrap(), "1");
        assert_eq!(generations(dir), 3);
        age(dir);
        assert!(!write(dir, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(generations(dir), 1);
    }

    #[test]
    fn a_write_that_was_cut_off_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &payload(&[("a", "1")]), None).unwrap();
        // Before the swap: a half-written directory and a link to it.
        fs::create_dir(dir.join("..2000_01_01_00_00_00.0")).unwrap();
        fs::write(dir.join("..2000_01_01_00_00_00.0/a"), "half").unwrap();
        symlink("..2000_01_01_00_00_00.0", dir.join(NEW_DATA)).unwrap();
        age(dir);
        write(dir, &payload(&[("a", "1")]), None).unwrap();
        assert_eq!(names(dir), ["..data", "a"]);
        assert_eq!(generations(dir), 1);
        // After it: a link is missing, the old directory is there.
        fs::remove_file(dir.join("a")).unwrap();
        fs::create_dir(dir.join("..2000_01_01_00_00_00.0")).unwrap();
        age(dir);
        write(dir, &payload(&[("a", "1")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(generations(dir), 1);
    }

    #[test]
    fn a_group_reads_all_of_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        write(&volume, &payload(&[("d/a", "1")]), Some(1234)).unwrap();
        write(&volume, &payload(&[("d/a", "1")]), Some(1234)).unwrap();
        assert_eq!(generations(&volume), 1);
        let top = fs::metadata(&volume).unwrap();
        assert_eq!((top.gid(), top.mode() & 0o7777), (1234, 0o2755));
        let below = fs::metadata(volume.join("d")).unwrap();
        assert_eq!((below.gid(), below.mode() & 0o7777), (1234, 0o2755));
        let file = fs::metadata(volume.join("d/a")).unwrap();
        assert_eq!((file.gid(), file.mode() & 0o7777), (1234, 0o640));
    }
}
