//! The guest's two files.

use anyhow::bail;
use std::path::{Path, PathBuf};

/// What every VM boots.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// Finds them in a directory.
pub(crate) fn find(dir: &Path) -> anyhow::Result<Guest> {
    let file = |name: &str| {
        let path = dir.join(name);
        if !path.is_file() {
            bail!(
                "the guest's {name} is not in {}; build it (`cargo xtask setup` puts it into \
                 target/guest) or name its directory with --guest",
                dir.display()
            );
        }
        Ok(path.canonicalize()?)
    };
    Ok(Guest {
        kernel: file("vmlinux")?,
        initramfs: file("initramfs.cpio")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_kernel_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = find(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("vmlinux") && error.contains("--guest"),
            "{error}"
        );
    }
}
