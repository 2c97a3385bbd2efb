//! Runs other programs, with their output shown and their failure named.

use anyhow::{Context, bail};
use std::path::Path;
use std::process::Command;

/// Says what is being done, on a line of its own.
pub(crate) fn step(what: &str) {
    eprintln!("\x1b[1;32m==>\x1b[0m {what}");
}

/// Runs a command to its end; an error where it cannot start or does not succeed.
pub(crate) fn checked(command: &mut Command) -> anyhow::Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let status = command
        .status()
        .with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} failed: {status}");
    }
    Ok(())
}

/// The cargo that runs this xtask, in the checkout.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    // What cargo tells this program of its own package. Build scripts that look at
    // such variables (ring's) would be run anew, and all that stands on them, each
    // time that cargo is called by xtask after it was called by hand.
    for (name, _) in std::env::vars_os() {
        let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if of_package
            .iter()
            .any(|of| name.to_string_lossy().starts_with(of))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}
