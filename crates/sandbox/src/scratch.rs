//! Scratch disks: a sparse ext4 file per sandbox, copied from a template that
//! is made once per size.

use crate::error::SandboxError;
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Layout of the templates; raised when the mkfs options change.
const VERSION: u32 = 1;
/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// Size in MiB of the scratch disk of sandboxes that ask for none.
pub const DEFAULT_SCRATCH_MIB: u64 = 10 << 10;
/// Least size of a scratch disk in MiB: an ext4 with quota needs some.
pub const MIN_SCRATCH_MIB: u64 = 16;
/// Largest size of a scratch disk in MiB: half of what a VM has room for.
pub const MAX_SCRATCH_MIB: u64 = 8 << 20;

/// Refuses a size that no scratch disk has.
pub(crate) fn check_size(mib: u64) -> Result<(), SandboxError> {
    if (MIN_SCRATCH_MIB..=MAX_SCRATCH_MIB).contains(&mib) {
        return Ok(());
    }
    Err(SandboxError::Invalid {
        field: "scratch_mib",
        message: format!(
            "a scratch disk of {mib} MiB: must be {MIN_SCRATCH_MIB} to {MAX_SCRATCH_MIB} MiB"
        ),
    })
}

/// Makes `target`, a scratch disk of `size_mib`. Blocks.
pub(crate) fn make(root: &Path, size_mib: u64, target: &Path) -> Result<(), SandboxError> {
    let template = template(root, size_mib)?;
    let failed = |source| SandboxError::file("cannot copy the scratch disk to", target, source);
    let from = File::open(&template).map_err(failed)?;
    let to = new_file(target).map_err(failed)?;
    copy_sparse(&from, &to).map_err(failed)
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// The template of that size, made if it is missing.
fn template(root: &Path, size_mib: u64) -> Result<PathBuf, SandboxError> {
    let dir = root.join("scratch-templates");
    let path = dir.join(format!("ext4-v{VERSION}-{size_mib}.img"));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(|e| SandboxError::file("cannot make", &dir, e))?;
    // Made under another name: a daemon killed in the middle leaves no template
    // that looks whole. The thread's id keeps two at once apart.
    let unfinished = dir.join(format!(
        ".new-{size_mib}-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let result = make_template(&unfinished, size_mib).and_then(|()| {
        fs::rename(&unfinished, &path).map_err(|e| SandboxError::file("cannot rename to", &path, e))
    });
    if result.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    result.map(|()| path)
}

fn make_template(path: &Path, size_mib: u64) -> Result<(), SandboxError> {
    let failed = |source| SandboxError::file("cannot make", path, source);
    let file = new_file(path).map_err(failed)?;
    file.set_len(size_mib << 20).map_err(failed)?;
    drop(file);
    // No journal: the disk dies with its VM. Quota and project: size limits of
    // volumes. The tables are zero in a sparse file, so they need no writing.
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal,quota,project"])
        .args(["-E", "quotatype=prjquota,lazy_itable_init=1,nodiscard"])
        .args(["-E", "packed_meta_blocks=1,root_owner=0:0"])
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
    fn scratch_disk_is_an_ext4_of_that_size_and_the_template_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("scratch.img");
        make(dir.path(), 64, &target).unwrap();
        let file = File::open(&target).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 << 20);
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(u16::from_le_bytes(magic), 0xef53);
        let templates = fs::read_dir(dir.path().join("scratch-templates")).unwrap();
        assert_eq!(templates.count(), 1);
        make(dir.path(), 64, &dir.path().join("second.img")).unwrap();
    }

    #[test]
    fn directory_that_cannot_be_written_is_named() {
        let error = make(Path::new("/proc/nowhere"), 64, Path::new("/proc/x")).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    }
}
