//! `cargo xtask lint`: format and clippy, as CI wants them.

use crate::run::{cargo, checked, step};
use std::path::Path;

/// Fails at the first thing that is not clean.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    step("checking the format");
    checked(cargo(root).args(["fmt", "--all", "--check"]))?;
    step("running clippy");
    checked(cargo(root).args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}
