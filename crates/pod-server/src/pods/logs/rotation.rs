//! Where a log goes on whose file was renamed: a CRI client rotates its containers'
//! logs so, and kubelets name the old files after the log with a dot and the time.

use std::ffi::OsStr;
use std::fs::{DirEntry, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The file that follows this one; `None` while the log goes on in it. There is a
/// record in the file that follows, and all of this one was written before that.
/// A reader that is several rotations late gets one file after the other, except
/// those that are compressed or removed by then.
pub(super) fn next(path: &Path, file: &File) -> io::Result<Option<File>> {
    let this = file.metadata()?;
    match path.metadata() {
        Ok(now) if is_same(&now, &this) => return Ok(None),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Opened before the others are looked at: what is rotated in between is known.
    let newest = open(path)?;
    let now = newest.as_ref().map(File::metadata).transpose()?;
    if let Some(rotated) = rotated(path, &this, now.as_ref())? {
        return open(&rotated);
    }
    // Until a record is there the old file may still be written to. A rotation that
    // was taken back leads to where it began.
    let goes_on = now.is_some_and(|now| now.len() > 0 && !is_same(&now, &this));
    Ok(newest.filter(|_| goes_on))
}

/// The first of the rotated files that were written after this one, and before the
/// newest.
fn rotated(path: &Path, this: &Metadata, newest: Option<&Metadata>) -> io::Result<Option<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let is_known =
        |file: &Metadata| is_same(file, this) || newest.is_some_and(|newest| is_same(file, newest));
    if this.len() == 0 {
        // Its time says nothing: nothing was written to it.
        return Ok(None);
    }
    let entries = match dir.read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let written = this.modified()?;
    let mut first: Option<(SystemTime, PathBuf)> = None;
    for entry in entries {
        let entry = entry?;
        // One that is removed meanwhile has nothing to read.
        let Some(later) = is_rotation(&entry, name)
            .then(|| entry.metadata().ok())
            .flatten()
            .filter(|other| other.len() > 0 && !is_known(other))
            .and_then(|other| other.modified().ok())
            .filter(|modified| *modified > written)
        else {
            continue;
        };
        if first.as_ref().is_none_or(|(before, _)| later < *before) {
            first = Some((later, entry.path()));
        }
    }
    Ok(first.map(|(_, path)| path))
}

/// Whether this is a part of the log of that name, as it was written.
fn is_rotation(entry: &DirEntry, log: &OsStr) -> bool {
    let name = entry.file_name();
    let rest = name.as_bytes().strip_prefix(log.as_bytes());
    rest.is_some_and(|rest| {
        rest.starts_with(b".") && !rest.ends_with(b".gz") && !rest.ends_with(b".tmp")
    })
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}
