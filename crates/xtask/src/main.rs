//! The project's own commands, `cargo xtask <command>`: everything between a
//! fresh clone and a running demo, a passed test suite, a benchmark report.

mod binaries;
mod demo;
mod guest;
mod kernel;
mod lint;
mod package;
mod packages;
mod run;
mod setup;
mod test;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, show, test and measure Spherule")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install missing packages, build the guest kernel, the guest agent and the binaries
    Setup,
    /// Run the pods of tests/pods end to end and print what they said and how long each stage took
    Demo(demo::Args),
    /// Lint, then run every test
    Test(test::Args),
    /// Measure pod start-up and write target/bench/ (JSON and an HTML report)
    Bench {
        /// Arguments for the benchmark; `-- --help` lists them
        #[arg(trailing_var_arg = true)]
        args: Vec<String>,
    },
    /// Check format and clippy, without warnings
    Lint,
    /// Build a Debian package to install from, with a service for systemd
    Package(package::Args),
    /// Build the guest kernel only
    Kernel(kernel::Args),
    /// Build the guest agent and its initramfs only
    Guest,
}

fn main() -> anyhow::Result<()> {
    let root = root();
    match Cli::parse().command {
        Command::Setup => setup::run(&root),
        Command::Demo(args) => demo::run(&root, &args),
        Command::Test(args) => test::run(&root, &args),
        Command::Bench { args } => binaries::bench(&root, &args),
        Command::Lint => lint::run(&root),
        Command::Package(args) => package::run(&root, &args),
        Command::Kernel(args) => kernel::run(&root, &args),
        Command::Guest => {
            println!("{}", guest::ensure(&root)?.display());
            Ok(())
        }
    }
}

/// The top of the checkout that this xtask was built from.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or(here.clone(), PathBuf::from)
}
