//! The directory of network configurations, read anew whenever it has changed.

use super::list::{ListError, NetworkList};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The largest configuration file that is read, in bytes.
const MAX_FILE_LEN: u64 = 1 << 20;

/// A file of the directory that could not be used.
#[derive(Debug)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: SkipReason,
}

/// Why a file of the directory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkipReason {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It is too large for a configuration.
    #[error("is larger than 1 MiB")]
    TooLarge,
    /// Its content is no configuration.
    #[error("is no network configuration")]
    Content(#[source] ListError),
}

/// What the directory held when it was read last.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The first valid configuration by file name, and its file.
    pub(crate) list: Option<(PathBuf, Arc<NetworkList>)>,
    /// Files before it that are not valid.
    pub(crate) skipped: Vec<Skipped>,
}

/// A file and what would be different about it if it were another one.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    inode: u64,
    size: u64,
    /// Change time: unlike the modification time nobody can set it.
    changed: (i64, i64),
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    last: Mutex<Option<(Vec<Seen>, Arc<Contents>)>>,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            last: Mutex::new(None),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it now. A directory that does not exist is an empty one.
    pub(crate) fn contents(&self) -> Result<Arc<Contents>, io::Error> {
        let seen = look(&self.path)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, contents)) = last.as_ref()
            && *before == seen
        {
            return Ok(contents.clone());
        }
        let contents = Arc::new(read(&seen));
        for skipped in &contents.skipped {
            tracing::warn!(
                file = %skipped.path.display(),
                reason = %crate::chain_text(&skipped.reason),
                "network configuration skipped",
            );
        }
        if let Some((path, list)) = &contents.list {
            tracing::info!(network = list.name, file = %path.display(), "network configuration");
        }
        *last = Some((seen, contents.clone()));
        Ok(contents)
    }
}

fn look(directory: &Path) -> Result<Vec<Seen>, io::Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut seen = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let named = matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("conflist" | "conf" | "json")
        );
        // Gone since, or a link to nowhere (which reading it will say).
        let metadata = fs::metadata(&path).or_else(|_| fs::symlink_metadata(&path));
        if let (true, Ok(metadata)) = (named, metadata)
            && !metadata.is_dir()
        {
            seen.push(identity(path, &metadata));
        }
    }
    seen.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(seen)
}

fn identity(path: PathBuf, metadata: &Metadata) -> Seen {
    Seen {
        path,
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn read(seen: &[Seen]) -> Contents {
    let mut contents = Contents::default();
    for Seen { path, size, .. } in seen {
        match read_one(path, *size) {
            Ok(list) => {
                contents.list = Some((path.clone(), Arc::new(list)));
                break;
            }
            Err(reason) => contents.skipped.push(Skipped {
                path: path.clone(),
                reason,
            }),
        }
    }
    contents
}

fn read_one(path: &Path, size: u64) -> Result<NetworkList, SkipReason> {
    if size > MAX_FILE_LEN {
        return Err(SkipReason::TooLarge);
    }
    let bytes = fs::read(path).map_err(SkipReason::Read)?;
    let list = if path.extension().is_some_and(|e| e == "conflist") {
        NetworkList::from_conflist(&bytes)
    } else {
        NetworkList::from_conf(&bytes)
    };
    list.map_err(SkipReason::Content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflist(name: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"bridge"}}]}}"#)
    }

    fn first(directory: &Directory) -> Option<String> {
        let contents = directory.contents().unwrap();
        contents.list.as_ref().map(|(_, list)| list.name.clone())
    }

    #[test]
    fn first_valid_file_by_name_wins() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().to_owned());
        assert_eq!(first(&directory), None);
        fs::write(dir.path().join("20-b.conflist"), conflist("b")).unwrap();
        fs::write(dir.path().join("00-a.conflist.bak"), conflist("bak")).unwrap();
        assert_eq!(first(&directory), Some("b".into()));
        let single = r#"{"cniVersion":"0.4.0","name":"a","type":"ptp"}"#;
        fs::write(dir.path().join("10-a.conf"), single).unwrap();
        assert_eq!(first(&directory), Some("a".into()));
        fs::write(dir.path().join("05-broken.json"), "{").unwrap();
        assert_eq!(first(&directory), Some("a".into()));
        assert_eq!(directory.contents().unwrap().skipped.len(), 1);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().to_owned());
        let path = dir.path().join("10-a.conflist");
        fs::write(&path, conflist("one")).unwrap();
        assert_eq!(first(&directory), Some("one".into()));
        // Same length, so only the inode and the change time tell.
        let new = dir.path().join("new");
        fs::write(&new, conflist("two")).unwrap();
        fs::rename(new, &path).unwrap();
        assert_eq!(first(&directory), Some("two".into()));
        fs::remove_file(path).unwrap();
        assert_eq!(first(&directory), None);
    }

    #[test]
    fn a_missing_directory_is_an_empty_one() {
        let directory = Directory::new("/nonexistent/net.d".into());
        assert_eq!(first(&directory), None);
    }
}
