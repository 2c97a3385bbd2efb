//! Empty file systems, made once a size and copied sparsely: a copy costs what its
//! metadata takes, not a mkfs.

use crate::error::SandboxError;
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// A kind of ext4 file system. What it has no use for is left out: a copy of an empty
/// one takes some 100 KiB, where mkfs's own choice takes 4 MiB and more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Template {
    /// What its files are named by; to be changed with the options.
    name: &'static str,
    /// Options of mkfs.ext4 but for `-E`, of which the last one alone counts.
    options: &'static [&'static str],
    extended: &'static str,
}

/// No journal: the disk dies with its VM. Quota and project: size limits of volumes.
pub(crate) const SCRATCH: Template = Template {
    name: "ext4-v2",
    options: &[
        "-O",
        "^has_journal,^resize_inode,sparse_super2,quota,project",
    ],
    extended: "quotatype=prjquota",
};

/// It outlives VMs that end without warning, hence a journal; the smallest there is,
/// as what that takes counts as the volume's.
pub(crate) const EMPTY_DIR: Template = Template {
    name: "emptydir-v1",
    options: &["-O", "^resize_inode,sparse_super2", "-J", "size=4"],
    extended: "lazy_journal_init=1",
};

/// Of all kinds: the tables are zero in a sparse file, so that they need no writing,
/// and lie together.
const EXTENDED: &str =
    "num_backup_sb=0,lazy_itable_init=1,nodiscard,packed_meta_blocks=1,root_owner=0:0";

impl Template {
    /// Writes an empty file system of `size_mib` into the empty file `target`, at
    /// `path`. Blocks.
    pub(crate) fn copy_to(
        self,
        root: &Path,
        size_mib: u64,
        target: &File,
        path: &Path,
    ) -> Result<(), SandboxError> {
        let template = self.find(root, size_mib)?;
        File::open(&template)
            .and_then(|from| copy_sparse(&from, target))
            .map_err(|e| SandboxError::file("cannot copy an empty disk to", path, e))
    }

    /// The template of that size, made if it is missing.
    fn find(self, root: &Path, size_mib: u64) -> Result<PathBuf, SandboxError> {
        let dir = root.join("scratch-templates");
        let path = dir.join(format!("{}-{size_mib}.img", self.name));
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(&dir).map_err(|e| SandboxError::file("cannot make", &dir, e))?;
        // Made under another name: a daemon killed in the middle leaves no template
        // that looks whole. The thread's id keeps two at once apart.
        let unfinished = dir.join(format!(
            ".new-{}-{size_mib}-{}-{:?}",
            self.name,
            std::process::id(),
            std::thread::current().id()
        ));
        let result = self.make(&unfinished, size_mib).and_then(|()| {
            fs::rename(&unfinished, &path)
                .map_err(|e| SandboxError::file("cannot rename to", &path, e))
        });
        if result.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        result.map(|()| path)
    }

    fn make(self, path: &Path, size_mib: u64) -> Result<(), SandboxError> {
        let failed = |source| SandboxError::file("cannot make", path, source);
        let file = new_file(path).map_err(failed)?;
        file.set_len(size_mib << 20).map_err(failed)?;
        drop(file);
        let output = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .args(self.options)
            .args(["-E", &format!("{},{EXTENDED}", self.extended)])
            .arg(path)
            .output();
        let mkfs = |message: String| SandboxError::Mkfs {
            path: path.to_owned(),
            message,
        };
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                Err(mkfs(format!("{} ({})", text.trim(), output.status)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(mkfs(
                "it is not installed; install the package e2fsprogs".into(),
            )),
            Err(e) => Err(mkfs(e.to_string())),
        }
    }
}

/// A file of the daemon alone, empty.
pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Copies `from` into the empty file `to`, its holes staying holes: by sharing
/// blocks where the file system can, otherwise piece by piece.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let got = from.read_at(&mut buffer[..want], at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&buffer[..got], at)?;
        at += got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn copy_has_the_same_bytes_and_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let from = new_file(&dir.path().join("from")).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"head", 0).unwrap();
        from.write_all_at(b"middle", 40 << 20).unwrap();
        let to = new_file(&dir.path().join("to")).unwrap();
        copy_sparse(&from, &to).unwrap();
        let meta = to.metadata().unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let mut bytes = [0; 6];
        to.read_exact_at(&mut bytes, 40 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
    }

    #[test]
    fn an_empty_file_system_takes_little_and_its_template_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, mib) in [(SCRATCH, 64), (EMPTY_DIR, 1 << 10), (EMPTY_DIR, 256 << 10)] {
            for name in ["first", "second"] {
                let path = dir.path().join(name);
                let file = new_file(&path).unwrap();
                kind.copy_to(dir.path(), mib, &file, &path).unwrap();
                let meta = file.metadata().unwrap();
                assert_eq!(meta.len(), mib << 20);
                assert!(meta.blocks() < 2 << 10, "{kind:?}: {}", meta.blocks());
                let mut magic = [0; 2];
                file.read_exact_at(&mut magic, 1024 + 56).unwrap();
                assert_eq!(u16::from_le_bytes(magic), 0xef53);
            }
        }
        let templates = fs::read_dir(dir.path().join("scratch-templates")).unwrap();
        assert_eq!(templates.count(), 3);
    }
}
