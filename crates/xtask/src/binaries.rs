//! The host's binaries, and the benchmark that is one of them.

use crate::run::{cargo, checked, step};
use crate::{guest, kernel, packages};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The benchmark's package and program.
const BENCH: &str = "spherule-bench";

/// How the binaries are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For the demo and the tests: quick to build.
    Dev,
    /// For measuring and for use.
    Release,
}

/// Where the binaries lie after a build.
#[derive(Debug)]
pub(crate) struct Binaries {
    /// `spherule`; `spherule-vmm` lies beside it.
    pub(crate) spherule: PathBuf,
}

/// Builds `spherule` and `spherule-vmm`, and these packages with them.
pub(crate) fn build(root: &Path, profile: Profile, more: &[&str]) -> anyhow::Result<Binaries> {
    step("building spherule and spherule-vmm");
    let mut cargo = cargo(root);
    cargo.args(["build", "-p", "spherule", "-p", "vmm", "--bins"]);
    cargo.args(more.iter().flat_map(|package| ["-p", package]));
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    checked(&mut cargo)?;
    Ok(Binaries {
        spherule: root.join("target").join(folder).join("spherule"),
    })
}

/// `cargo xtask bench`.
pub(crate) fn bench(root: &Path, args: &[String]) -> anyhow::Result<()> {
    packages::ensure(&[
        packages::KERNEL,
        packages::RUN,
        packages::DEMO,
        packages::BENCH,
    ])?;
    let vmlinux = kernel::ensure(root)?;
    guest::ensure(root)?;
    let built = build(root, Profile::Release, &[BENCH])?;
    step("counting the guest kernel's instructions");
    let instructions = kernel::instructions_until_agent(root, &vmlinux)?;
    step("measuring");
    let mut bench = Command::new(built.spherule.with_file_name(BENCH));
    bench.current_dir(root);
    bench.args(["--kernel-instructions", &instructions.to_string()]);
    checked(bench.args(args))
}
