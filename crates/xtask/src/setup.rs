//! `cargo xtask setup`: from a fresh clone to everything built.

use crate::{binaries, guest, kernel, packages};
use std::path::Path;

/// Packages, kernel, guest agent, binaries. What is there already costs nothing.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    packages::ensure(&[
        packages::KERNEL,
        packages::RUN,
        packages::DEMO,
        packages::TEST,
    ])?;
    build(root)?;
    Ok(())
}

/// What a pod needs, built: kernel, guest agent, binaries.
pub(crate) fn build(root: &Path) -> anyhow::Result<binaries::Binaries> {
    kernel::ensure(root)?;
    guest::ensure(root)?;
    binaries::build(root, binaries::Profile::Dev, &[])
}
