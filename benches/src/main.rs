//! `cargo xtask bench`: how long the stages of a pod's start take on each engine,
//! what a pod costs in memory, how long the calls of the CRI take, how fast streams
//! and files are, what its network carries. Real pods on the real daemon, nothing
//! else: the stages are those that the daemon records for every pod.

mod cri;
mod many_files;
mod memory;
mod network;
mod report;
mod start;
mod statistics;
mod storage;
mod streaming;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use report::{EngineReport, Section};
use spherule_tests::{Daemon, DaemonOptions, machine};
use std::path::PathBuf;
use std::time::Instant;

/// Measures what pods take on each engine.
#[derive(Parser)]
struct Args {
    /// Runs on each engine; medians want at least five
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Engines to measure
    #[arg(long, value_delimiter = ',', default_value = "kvm,qemu")]
    engines: Vec<String>,
    /// Engines on which the CRI's calls, streams and files are measured; default: the
    /// machine's own
    #[arg(long, value_delimiter = ',')]
    cri_engines: Option<Vec<String>>,
    /// How many sandboxes are asked for at once
    #[arg(long, value_delimiter = ',', default_value = "1,10,30")]
    at_once: Vec<usize>,
    /// Engines on which the network is measured; default: all that are measured
    #[arg(long, value_delimiter = ',')]
    network_engines: Option<Vec<String>>,
    /// Only these parts
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<Part>>,
    /// Guest instructions until the agent runs, as `xtask kernel --measure` counts them
    #[arg(long)]
    kernel_instructions: Option<u64>,
    /// Where the report goes
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// What is measured with many files: works in that directory and says how long
    #[arg(long, hide = true)]
    many_files: Option<PathBuf>,
}

/// What is measured by itself: where one fails the others are still reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Stages of a pod's start, memory of its VM
    Start,
    /// Calls of the CRI, many pods at once, memory of the daemon
    Cri,
    /// Commands, attach and port-forward
    Streams,
    /// What a pod's network carries
    Network,
    /// What a network adds to a pod's start
    NetworkStart,
    /// Files on each kind of mount
    Files,
    /// What mounts add to a container's start
    Mounts,
}

/// A KVM that emulates needs more than the default's two minutes on a busy machine.
const AGENT_TIMEOUT: [&str; 2] = ["--agent-timeout", "500s"];

/// Parts that share a daemon whose pods have their loopback only.
const ON_ONE_DAEMON: [Part; 3] = [Part::Start, Part::Cri, Part::Streams];

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(directory) = &args.many_files {
        return many_files::work(directory);
    }
    ensure!(args.runs > 0, "--runs: at least one");
    let begin = Instant::now();
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
        let mut measured = Bench {
            engine,
            args: &args,
            report: EngineReport::new(engine),
        };
        measured.run();
        report.engines.push(measured.report);
    }
    report.print();
    report.write(&args.out)?;
    eprintln!("took {} s", begin.elapsed().as_secs());
    let failed = |engine: &EngineReport| !engine.failed.is_empty();
    ensure!(
        !report.engines.iter().any(failed),
        "not all of it could be measured; the report says what and why"
    );
    Ok(())
}

/// One engine's measurements.
struct Bench<'a> {
    engine: &'a str,
    args: &'a Args,
    report: EngineReport,
}

impl Bench<'_> {
    fn run(&mut self) {
        let (engine, runs) = (self.engine, self.args.runs);
        if ON_ONE_DAEMON.iter().any(|part| self.wants(*part)) {
            match Daemon::with(DaemonOptions {
                engine: engine.into(),
                args: AGENT_TIMEOUT.map(str::to_owned).to_vec(),
                ..DaemonOptions::default()
            }) {
                Ok(daemon) => self.on(&daemon),
                Err(error) => self.report.fail("daemon", &error),
            }
        }
        // A KVM that emulates takes a minute to boot a pod and seconds for a few KiB.
        let slow = machine().engine != engine && !machine().kvm_is_fast;
        self.part(Part::Network, || {
            if slow {
                network::measure(engine, 1, network::Volume::TINY)
            } else {
                network::measure(engine, runs, network::Volume::USUAL)
            }
        });
        if !slow {
            self.part(Part::NetworkStart, || {
                network::start_with_and_without(engine, runs)
            });
        }
        self.part(Part::Files, || storage::on_files(engine));
        self.part(Part::Mounts, || storage::mounts(engine, runs));
    }

    /// The parts that share a daemon.
    fn on(&mut self, daemon: &Daemon) {
        let (runs, at_once) = (self.args.runs, &self.args.at_once);
        self.report.detail = reason(daemon).unwrap_or_default();
        self.part(Part::Start, || start::measure(daemon, runs));
        self.part(Part::Cri, || cri::measure(daemon, runs, at_once));
        self.part(Part::Streams, || streaming::measure(daemon, runs));
    }

    /// Measures a part if it is wanted.
    fn part(&mut self, part: Part, measure: impl FnOnce() -> anyhow::Result<Vec<Section>>) {
        if !self.wants(part) {
            return;
        }
        let begin = Instant::now();
        match measure() {
            Ok(sections) => self.report.sections.extend(sections),
            Err(error) => self.report.fail(&format!("{part:?}"), &error),
        }
        eprintln!(
            "{}, {part:?}: took {} s",
            self.engine,
            begin.elapsed().as_secs()
        );
    }

    fn wants(&self, part: Part) -> bool {
        let args = self.args;
        let is_named = |engines: &Vec<String>| engines.iter().any(|named| named == self.engine);
        let here = match part {
            Part::Start => true,
            // Thirty pods at once, or ten thousand files, would take hours on a KVM
            // that emulates.
            Part::Cri | Part::Streams | Part::Files | Part::Mounts => match &args.cri_engines {
                Some(engines) => is_named(engines),
                None => machine().engine == self.engine,
            },
            Part::Network | Part::NetworkStart => {
                machine().no_network.is_none() && args.network_engines.as_ref().is_none_or(is_named)
            }
        };
        here && args.only.as_ref().is_none_or(|only| only.contains(&part))
    }
}

/// Why the daemon would take its engine by itself, or not.
fn reason(daemon: &Daemon) -> anyhow::Result<String> {
    let info = daemon.cli(["info", "--output", "json"])?.json()?;
    Ok(info["engineReason"].as_str().unwrap_or_default().to_owned())
}
