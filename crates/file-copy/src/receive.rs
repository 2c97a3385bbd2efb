//! The receiving end.

use crate::{CopyError, MAX_DEPTH, PIECE};
use guest_api::proto::copy_entry::Kind;
use guest_api::proto::copy_item::Kind as Item;
use guest_api::proto::{CopyEntry, CopyItem};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, mkdirat, openat, renameat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What becomes of symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// They are made as they are.
    Keep,
    /// None is made: what they lead to from here is not what they led to there.
    LeaveOut,
}

/// Makes a tree of the items of a sender. Dropped before the end it leaves what was
/// whole.
#[derive(Debug)]
pub struct Receiver {
    parent: OwnedFd,
    /// Of the top in its parent; `None`: the parent is the top.
    top: Option<OsString>,
    links: Links,
    file: Option<Open>,
    ended: bool,
}

/// A file that is not whole yet, under a name that is not its own.
#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    dir: OwnedFd,
    temporary: OsString,
    name: OsString,
    path: PathBuf,
    modified_ns: i64,
}

impl Receiver {
    /// The tree becomes `path`, or `name` in it where it is a directory; `None`: what
    /// the tree's top holds goes into the directory `path`.
    ///
    /// # Errors
    /// If there is no such directory, or none that `path` could be in.
    pub fn new(path: &Path, name: Option<&OsStr>, links: Links) -> Result<Self, CopyError> {
        let (parent, top) = destination(path, name)?;
        Ok(Self {
            parent,
            top,
            links,
            file: None,
            ended: false,
        })
    }

    /// Takes the next item; returns what was left out, by the sender or here.
    ///
    /// # Errors
    /// If the item does not fit, or a file cannot be made.
    pub fn take(&mut self, item: CopyItem) -> Result<Option<String>, CopyError> {
        match item.kind {
            Some(_) if self.ended => Err(CopyError::Broken("more behind its end")),
            Some(Item::Data(bytes)) => self.data(&bytes).map(|()| None),
            Some(Item::LeftOut(what)) => Ok(Some(what)),
            Some(Item::Entry(entry)) => {
                self.finish_file()?;
                self.entry(entry)
            }
            Some(Item::End(_)) => {
                self.finish_file()?;
                self.ended = true;
                Ok(None)
            }
            None => Err(CopyError::Broken("an item of a kind that is not known")),
        }
    }

    /// All items have come.
    ///
    /// # Errors
    /// If the last of them was not the end.
    pub fn finish(self) -> Result<(), CopyError> {
        if self.ended {
            Ok(())
        } else {
            Err(CopyError::CutOff)
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        let Some(open) = &self.file else {
            return Err(CopyError::Broken("bytes of no file"));
        };
        if bytes.len() > PIECE {
            return Err(CopyError::Broken("a piece that is too long"));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&open.fd, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(source) => return Err(failed("writing", &open.path, source)),
            }
        }
        Ok(())
    }

    /// The file is whole: it gets its name.
    fn finish_file(&mut self) -> Result<(), CopyError> {
        let Some(open) = self.file.take() else {
            return Ok(());
        };
        let seconds = open.modified_ns.div_euclid(1_000_000_000);
        let times = Timespec {
            tv_sec: seconds,
            tv_nsec: open.modified_ns.rem_euclid(1_000_000_000),
        };
        let times = Timestamps {
            last_access: times,
            last_modification: times,
        };
        let named = futimens(&open.fd, &times)
            .and_then(|()| renameat(&open.dir, &open.temporary, &open.dir, &open.name));
        named.map_err(|source| {
            let error = failed("making", &open.path, source);
            self.file = Some(open);
            error
        })
    }

    fn entry(&mut self, entry: CopyEntry) -> Result<Option<String>, CopyError> {
        let kind = Kind::try_from(entry.kind).unwrap_or(Kind::Unspecified);
        let names = names(entry.path)?;
        let path: PathBuf = self.top.iter().chain(&names).collect();
        let mut names: Vec<_> = self.top.iter().cloned().chain(names).collect();
        let Some(name) = names.pop() else {
            // The destination itself.
            return match kind {
                Kind::Directory => Ok(None),
                _ => Err(CopyError::Broken("its top is no directory")),
            };
        };
        let dir = self.directory(&names)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        match kind {
            Kind::Directory => {
                // Its owner can always fill it.
                match mkdirat(&dir, &name, mode | Mode::RWXU) {
                    Err(Errno::EXIST) => {
                        // A link or file there is said to be in the way, not followed.
                        open_directory(&dir, &name).map_err(|e| failed("making", &path, e))?;
                    }
                    made => made.map_err(|e| failed("making", &path, e))?,
                }
            }
            Kind::File => {
                let open = create(dir, name, mode, &path, entry.modified_ns);
                self.file = Some(open.map_err(|e| failed("making", &path, e))?);
            }
            Kind::Link if self.links == Links::LeaveOut => {
                let target = OsString::from_vec(entry.target);
                let (path, target) = (path.display(), target.display());
                return Ok(Some(format!("{path}: is a link to {target}")));
            }
            Kind::Link => {
                let made = match unlinkat(&dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {
                        symlinkat(OsStr::from_bytes(&entry.target), &dir, &name)
                    }
                    Err(e) => Err(e),
                };
                made.map_err(|e| failed("making", &path, e))?;
            }
            Kind::Unspecified => return Err(CopyError::Broken("an entry of no kind")),
        }
        Ok(None)
    }

    /// Opens a directory that was sent before, or was there before.
    fn directory(&self, names: &[OsString]) -> Result<OwnedFd, CopyError> {
        let mut dir = self.parent.as_fd().try_clone_to_owned().map_err(|e| {
            let source = Errno::from_io_error(&e).unwrap_or(Errno::MFILE);
            failed("opening", Path::new("."), source)
        })?;
        for (depth, name) in names.iter().enumerate() {
            dir = open_directory(&dir, name).map_err(|e| {
                let path: PathBuf = names[..=depth].iter().collect();
                failed("opening", &path, e)
            })?;
        }
        Ok(dir)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(open) = &self.file {
            // Half a file; where it cannot go, it has a name that says so.
            let _ = unlinkat(&open.dir, &open.temporary, AtFlags::empty());
        }
    }
}

fn failed(doing: &'static str, path: &Path, source: Errno) -> CopyError {
    CopyError::File {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// The directory that a tree goes to, and its name there.
fn destination(
    path: &Path,
    name: Option<&OsStr>,
) -> Result<(OwnedFd, Option<OsString>), CopyError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
    let must = path.as_os_str().as_bytes().ends_with(b"/") || name.is_none();
    match open(path) {
        Ok(dir) => return Ok((dir, name.map(OsStr::to_owned))),
        Err(Errno::NOENT | Errno::NOTDIR) if must => {
            return Err(CopyError::NoDirectory(path.to_owned()));
        }
        // A name for the copy.
        Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(source) => return Err(failed("opening", path, source)),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(CopyError::NoDirectory(path.to_owned()));
    };
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    match open(parent) {
        Ok(dir) => Ok((dir, Some(name.to_owned()))),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(CopyError::NoDirectory(parent.to_owned())),
        Err(source) => Err(failed("opening", parent, source)),
    }
}

/// A path's names, each a single one.
fn names(path: Vec<Vec<u8>>) -> Result<Vec<OsString>, CopyError> {
    if path.len() > MAX_DEPTH + 1 {
        return Err(CopyError::Broken("a path that is too deep"));
    }
    let single = |name: &[u8]| {
        !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
    };
    if !path.iter().all(|name| single(name)) {
        return Err(CopyError::Broken("a name that is no single name"));
    }
    Ok(path.into_iter().map(OsString::from_vec).collect())
}

fn open_directory(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// A new file beside the one that it becomes.
fn create(
    dir: OwnedFd,
    name: OsString,
    mode: Mode,
    path: &Path,
    modified_ns: i64,
) -> Result<Open, Errno> {
    let pid = rustix::process::getpid().as_raw_pid();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut number = 0u32;
    let (fd, temporary) = loop {
        let temporary = OsString::from(format!(".spherule-cp-{pid}-{number}"));
        match openat(&dir, &temporary, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => break (fd, temporary),
            // Left by one that was killed.
            Err(Errno::EXIST) if number < 1000 => number += 1,
            Err(e) => return Err(e),
        }
    };
    let open = Open {
        fd,
        dir,
        temporary,
        name,
        path: path.to_owned(),
        modified_ns,
    };
    match fchmod(&open.fd, mode) {
        Ok(()) => Ok(open),
        Err(e) => {
            let _ = unlinkat(&open.dir, &open.temporary, AtFlags::empty());
            Err(e)
        }
    }
}
