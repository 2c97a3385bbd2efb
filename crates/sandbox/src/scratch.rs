//! Scratch disks: a sparse ext4 file per sandbox.

use crate::disk_template::{SCRATCH, new_file};
use crate::error::SandboxError;
use std::path::Path;

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
    let file = new_file(target).map_err(|e| SandboxError::file("cannot make", target, e))?;
    SCRATCH.copy_to(root, size_mib, &file, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_disk_is_a_file_of_that_size() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("scratch.img");
        make(dir.path(), 64, &target).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 64 << 20);
    }

    #[test]
    fn directory_that_cannot_be_written_is_named() {
        let error = make(Path::new("/proc/nowhere"), 64, Path::new("/proc/x")).unwrap_err();
        assert!(error.to_string().contains("/proc/"), "{error}");
    }
}
