//! `cargo xtask bench`: how long the stages of a pod's start take on each engine,
//! and what a pod costs in memory. Real pods on the real daemon, nothing else:
//! the stages are those that the daemon records for every pod.

mod memory;
mod report;
mod start;
mod statistics;

use anyhow::ensure;
use clap::Parser;
use spherule_tests::machine;
use std::path::PathBuf;

/// Measures pod start-up and memory.
#[derive(Parser)]
struct Args {
    /// Runs on each engine; medians want at least five
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Engines to measure
    #[arg(long, value_delimiter = ',', default_value = "kvm,qemu")]
    engines: Vec<String>,
    /// Guest instructions until the agent runs, as `xtask kernel --measure` counts them
    #[arg(long)]
    kernel_instructions: Option<u64>,
    /// Where the report goes
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.runs > 0, "--runs: at least one");
    let mut report = report::Report::new(args.runs, args.kernel_instructions);
    for engine in &args.engines {
        let lacking = match engine.as_str() {
            "kvm" => &machine().no_kvm,
            "qemu" => &machine().no_qemu,
            other => anyhow::bail!("--engines: {other:?} is not kvm or qemu"),
        };
        if let Some(why) = lacking {
            eprintln!("{engine}: skipped, {why}");
            report.skipped.push((engine.clone(), why.clone()));
            continue;
        }
        report.engines.push(start::measure(engine, args.runs)?);
    }
    report.print();
    report.write(&args.out)
}
