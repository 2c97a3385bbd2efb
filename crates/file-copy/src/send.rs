//! The sending end: a tree, read by descriptors, no link followed but at its top.

use crate::{CopyError, MAX_DEPTH, PIECE};
use guest_api::proto::copy_entry::Kind;
use guest_api::proto::copy_item::Kind as Item;
use guest_api::proto::{CopyEntry, CopyItem};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Sends `path` and all beneath it to `sink`. What cannot be read, and what is
/// neither file, directory nor link, is left out and told of; whether there was any.
///
/// # Errors
/// If `path` itself cannot be read, or `sink` fails.
pub fn send(
    path: &Path,
    sink: &mut dyn FnMut(CopyItem) -> io::Result<()>,
) -> Result<bool, CopyError> {
    let mut sender = Sender {
        sink,
        names: Vec::new(),
        left_out: false,
    };
    let failed = |source| CopyError::File {
        doing: "opening",
        path: path.to_owned(),
        source,
    };
    // A pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let top = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let stat = fstat(&top).map_err(failed)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => sender.tree(top, &stat)?,
        FileType::RegularFile => sender.file(&top, &stat)?,
        _ => sender.leave_out("is neither file nor directory")?,
    }
    sender.say(Item::End(true))?;
    Ok(sender.left_out)
}

struct Sender<'a> {
    sink: &'a mut dyn FnMut(CopyItem) -> io::Result<()>,
    /// From the top down to what is being sent.
    names: Vec<CString>,
    left_out: bool,
}

impl Sender<'_> {
    fn say(&mut self, kind: Item) -> Result<(), CopyError> {
        (self.sink)(CopyItem { kind: Some(kind) }).map_err(CopyError::Unwanted)
    }

    fn leave_out(&mut self, why: impl std::fmt::Display) -> Result<(), CopyError> {
        self.left_out = true;
        let names: Vec<_> = self.names.iter().map(|n| n.to_string_lossy()).collect();
        let path = match names.is_empty() {
            true => ".".to_owned(),
            false => names.join("/"),
        };
        self.say(Item::LeftOut(format!("{path}: {why}")))
    }

    fn entry(&mut self, kind: Kind, stat: &Stat, target: Vec<u8>) -> Result<(), CopyError> {
        let seconds = i128::from(stat.st_mtime);
        let modified = seconds * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        self.say(Item::Entry(CopyEntry {
            kind: kind.into(),
            path: self.names.iter().map(|n| n.as_bytes().to_vec()).collect(),
            mode: stat.st_mode & 0o777,
            target,
            modified_ns: i64::try_from(modified).unwrap_or(0),
        }))
    }

    /// A directory and all beneath it.
    fn tree(&mut self, top: OwnedFd, stat: &Stat) -> Result<(), CopyError> {
        let mut open = Vec::new();
        if let Some(dir) = self.directory(top, stat)? {
            open.push(dir);
        }
        while let Some(dir) = open.last_mut() {
            let Some(next) = dir.read() else {
                open.pop();
                self.names.pop();
                continue;
            };
            let entry = match next {
                Ok(entry) => entry,
                Err(e) => {
                    self.leave_out(format_args!("reading the directory: {e}"))?;
                    continue;
                }
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.names.push(name.to_owned());
            let depth = open.len();
            let below = match open.last().and_then(|dir| dir.fd().ok()) {
                Some(dir) => self.member(dir, name, depth)?,
                None => None,
            };
            match below {
                Some(below) => open.push(below),
                None => drop(self.names.pop()),
            }
        }
        Ok(())
    }

    /// Says that there is a directory, and opens it to be read.
    fn directory(&mut self, dir: OwnedFd, stat: &Stat) -> Result<Option<Dir>, CopyError> {
        match Dir::new(dir) {
            Ok(dir) => {
                self.entry(Kind::Directory, stat, Vec::new())?;
                Ok(Some(dir))
            }
            Err(e) => {
                self.leave_out(e)?;
                Ok(None)
            }
        }
    }

    /// One name in a directory; returns the directory that it is.
    fn member(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> Result<Option<Dir>, CopyError> {
        match self.open_member(dir, name) {
            Ok(Member::Directory(..)) if depth >= MAX_DEPTH => {
                let why = format!("lies more than {MAX_DEPTH} directories deep");
                self.leave_out(why).map(|()| None)
            }
            Ok(Member::Directory(fd, stat)) => self.directory(fd, &stat),
            Ok(Member::File(fd, stat)) => self.file(&fd, &stat).map(|()| None),
            Ok(Member::Link(target, stat)) => self.entry(Kind::Link, &stat, target).map(|()| None),
            Ok(Member::Other) => {
                let why = "is neither file, directory nor link";
                self.leave_out(why).map(|()| None)
            }
            Err(e) => self.leave_out(e).map(|()| None),
        }
    }

    fn open_member(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Member, Errno> {
        // Looked at first: to open a device may do something.
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                return Ok(Member::Link(target.into_bytes(), stat));
            }
            FileType::RegularFile | FileType::Directory => {}
            _ => return Ok(Member::Other),
        }
        let flags =
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = openat(dir, name, flags, Mode::empty())?;
        // It may be another by now.
        let stat = fstat(&fd)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Member::File(fd, stat),
            FileType::Directory => Member::Directory(fd, stat),
            _ => Member::Other,
        })
    }

    /// A file, as long as it is when its end is read.
    fn file(&mut self, file: &OwnedFd, stat: &Stat) -> Result<(), CopyError> {
        self.entry(Kind::File, stat, Vec::new())?;
        loop {
            let mut bytes = vec![0; PIECE];
            match rustix::io::read(file.as_fd(), &mut bytes) {
                Ok(0) => return Ok(()),
                Ok(got) => {
                    bytes.truncate(got);
                    self.say(Item::Data(bytes))?;
                }
                Err(Errno::INTR) => {}
                Err(e) => return self.leave_out(format_args!("ends early: reading it: {e}")),
            }
        }
    }
}

enum Member {
    File(OwnedFd, Stat),
    Directory(OwnedFd, Stat),
    Link(Vec<u8>, Stat),
    Other,
}
