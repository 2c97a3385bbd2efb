//! `cargo xtask bench`: how long the stages of a pod's start take on each engine,
//! what a pod costs in memory, how long the calls of the CRI take, how fast streams
//! and files are, what its network carries. Real pods on the real daemon, nothing
//! else: the stages are those that the daemon records for every pod.

mod cri;
mod memory;
mod network;
mod report;
mod start;
mod statistics;
mod storage;
mod streaming;

use anyhow::ensure;
use clap::Parser;
use report::{EngineReport, Section};
use spherule_tests::{Daemon, DaemonOptions, machine};
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
    /// Engines on which the CRI's calls and files are measured; default: the machine's own
    #[arg(long, value_delimiter = ',')]
    cri_engines: Option<Vec<String>>,
    /// How many sandboxes are asked for at once
    #[arg(long, value_delimiter = ',', default_value = "1,10,30")]
    at_once: Vec<usize>,
    /// Engines on which the network is measured; default: all that are measured
    #[arg(long, value_delimiter = ',')]
    network_engines: Option<Vec<String>>,
    /// Only the network
    #[arg(long)]
    only_network: bool,
    /// Only files
    #[arg(long, conflicts_with = "only_network")]
    only_files: bool,
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
        report.engines.push(measure(engine, &args)?);
    }
    report.print();
    report.write(&args.out)
}

fn measure(engine: &str, args: &Args) -> anyhow::Result<EngineReport> {
    eprintln!("engine {engine}");
    let (detail, mut sections) = if args.only_network || args.only_files {
        (String::new(), Vec::new())
    } else {
        pods(engine, args)?
    };
    if !args.only_files {
        sections.extend(networks(engine, args)?);
    }
    if !args.only_network && patient(engine, args) {
        sections.extend(storage::measure(engine, args.runs)?);
    }
    Ok(EngineReport {
        engine: engine.into(),
        detail,
        sections,
    })
}

/// What is measured on pods that have their loopback only, and why the daemon would
/// take this engine.
fn pods(engine: &str, args: &Args) -> anyhow::Result<(String, Vec<Section>)> {
    let daemon = Daemon::with(DaemonOptions {
        engine: engine.into(),
        ..DaemonOptions::default()
    })?;
    let info = daemon.cli(["info", "--output", "json"])?.json()?;
    let detail = info["engineReason"].as_str().unwrap_or_default().to_owned();
    let mut sections = start::measure(&daemon, args.runs)?;
    if patient(engine, args) {
        sections.extend(cri::measure(&daemon, args.runs, &args.at_once)?);
        sections.extend(streaming::measure(&daemon, args.runs)?);
    }
    Ok((detail, sections))
}

/// Thirty pods at once, or ten thousand files, would take hours on a KVM that
/// emulates.
fn patient(engine: &str, args: &Args) -> bool {
    match &args.cri_engines {
        Some(engines) => engines.iter().any(|wanted| wanted == engine),
        None => machine().engine == engine,
    }
}

fn networks(engine: &str, args: &Args) -> anyhow::Result<Vec<Section>> {
    let wanted = args.network_engines.as_ref();
    if wanted.is_some_and(|engines| engines.iter().all(|wanted| wanted != engine)) {
        return Ok(Vec::new());
    }
    if let Some(why) = &machine().no_network {
        eprintln!("network: skipped, {why}");
        return Ok(Vec::new());
    }
    // A KVM that emulates takes a minute to boot a pod and seconds for a few KiB.
    if machine().engine != engine && !machine().kvm_is_fast {
        return network::measure(engine, 1, network::Volume::TINY);
    }
    let mut sections = network::measure(engine, args.runs, network::Volume::USUAL)?;
    sections.push(network::start_with_and_without(engine, args.runs)?);
    Ok(sections)
}
