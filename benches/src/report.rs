//! The report: a table on the terminal, JSON for programs, one HTML page for
//! people, which needs nothing but itself.

mod html;

use crate::start::{EngineReport, Figure};
use anyhow::Context;
use serde::Serialize;
use std::path::Path;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) runs: usize,
    pub(crate) machine: String,
    /// Until spherule-init runs; counted, not timed.
    pub(crate) kernel_instructions: Option<u64>,
    pub(crate) engines: Vec<EngineReport>,
    /// Engines that this machine cannot run, and why.
    pub(crate) skipped: Vec<(String, String)>,
}

impl Report {
    pub(crate) fn new(runs: usize, kernel_instructions: Option<u64>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            runs,
            machine: format!("{cpus} CPUs, Linux {}", release.trim()),
            kernel_instructions,
            engines: Vec::new(),
            skipped: Vec::new(),
        }
    }

    pub(crate) fn print(&self) {
        if let Some(count) = self.kernel_instructions {
            println!(
                "guest kernel: {:.1} million instructions until the agent runs\n",
                millions(count)
            );
        }
        for engine in &self.engines {
            println!("engine {} ({})", engine.engine, engine.detail);
            print_figures("  reached after, ms", &engine.reached_ms);
            print_figures("  stage alone, ms", &engine.stages_ms);
            print_figures("  memory (PSS), KiB", &engine.memory_kib);
            println!();
        }
        for (engine, why) in &self.skipped {
            println!("engine {engine}: skipped, {why}");
        }
    }

    /// Writes `bench.json` and `bench.html` into a directory.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir)?;
        for (name, text) in [
            ("bench.json", serde_json::to_string_pretty(self)?),
            ("bench.html", html::page(self)),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            println!("wrote {}", path.display());
        }
        Ok(())
    }
}

fn print_figures(title: &str, figures: &[Figure]) {
    println!("{title:<40} {:>12} {:>12} {:>12}", "median", "min", "max");
    for Figure { name, summary: s } in figures {
        println!(
            "    {name:<36} {:>12.1} {:>12.1} {:>12.1}",
            s.median, s.min, s.max
        );
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a count of millions, printed with one digit"
)]
pub(crate) fn millions(count: u64) -> f64 {
    count as f64 / 1e6
}
