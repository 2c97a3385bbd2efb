//! `cargo xtask test`: the whole suite, from a fresh clone.

use crate::run::{cargo, checked, step};
use crate::{lint, setup};
use std::path::Path;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Skip format and clippy
    #[arg(long)]
    no_lint: bool,
    /// Also what takes minutes or gigabytes; shown as ignored otherwise
    #[arg(long)]
    long: bool,
    /// Run the black-box tests on this engine: kvm or qemu [default: kvm with hardware
    /// virtualization, else qemu]
    #[arg(long, value_parser = ["kvm", "qemu"])]
    engine: Option<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Builds everything, lints, then runs unit tests and the black-box tests that
/// boot VMs. A test that cannot run on this machine is counted as ignored, with
/// the reason in its name.
pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    setup::run(root)?;
    if !args.no_lint {
        lint::run(root)?;
    }
    step("running the tests");
    let mut test = cargo(root);
    test.args(["test", "--workspace", "--no-fail-fast"]);
    if args.long {
        // `spherule_tests::short` reads it.
        test.env("SPHERULE_LONG", "1");
    }
    if let Some(engine) = &args.engine {
        // `spherule_tests::machine` reads it.
        test.env("SPHERULE_ENGINE", engine);
    }
    if let Some(filter) = &args.filter {
        test.args(["--", filter]);
    }
    checked(&mut test)
}
