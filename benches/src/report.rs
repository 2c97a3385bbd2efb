//! The report: a table on the terminal, JSON for programs, one HTML page for
//! people, which needs nothing but itself.

mod html;

use crate::statistics::Summary;
use anyhow::Context;
use serde::Serialize;
use std::path::Path;

/// A named figure.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) summary: Summary,
}

/// Figures of one unit that belong together.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// Says the unit, too.
    pub(crate) title: String,
    pub(crate) figures: Vec<Figure>,
}

/// Figures of several runs, by name, in the order they first came.
#[derive(Default)]
pub(crate) struct Collected(Vec<(String, Vec<f64>)>);

impl Collected {
    pub(crate) fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.into(), vec![value])),
        }
    }

    /// [`Self::add`] where the value counts.
    pub(crate) fn add_if(&mut self, counts: bool, name: &str, value: f64) {
        if counts {
            self.add(name, value);
        }
    }

    /// Adds all of another.
    pub(crate) fn extend(&mut self, other: Self) {
        for (name, values) in other.0 {
            for value in values {
                self.add(&name, value);
            }
        }
    }

    pub(crate) fn section(self, title: &str) -> Section {
        let figure = |(name, values)| {
            Some(Figure {
                name,
                summary: Summary::of(values)?,
            })
        };
        Section {
            title: title.to_owned(),
            figures: self.0.into_iter().filter_map(figure).collect(),
        }
    }
}

/// What was measured on one engine.
#[derive(Debug, Serialize)]
pub(crate) struct EngineReport {
    pub(crate) engine: String,
    /// Why `auto` would or would not take it: the daemon's words.
    pub(crate) detail: String,
    pub(crate) sections: Vec<Section>,
    /// Parts that could not be measured, and why.
    pub(crate) failed: Vec<(String, String)>,
}

impl EngineReport {
    pub(crate) fn new(engine: &str) -> Self {
        Self {
            engine: engine.to_owned(),
            detail: String::new(),
            sections: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Keeps that a part could not be measured.
    pub(crate) fn fail(&mut self, part: &str, error: &anyhow::Error) {
        let why = format!("{error:#}");
        eprintln!("{}, {part}: failed: {why}", self.engine);
        self.failed.push((part.to_owned(), why));
    }
}

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
            for section in &engine.sections {
                print_section(section);
            }
            for (part, why) in &engine.failed {
                println!("  {part}: failed, {why}");
            }
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

fn print_section(section: &Section) {
    let title = format!("  {}", section.title);
    println!(
        "{title:<44} {:>10} {:>10} {:>10} {:>10}",
        "median", "min", "95 %", "max"
    );
    for Figure { name, summary: s } in &section.figures {
        let [median, min, p95, max] = [s.median, s.min, s.p95, s.max].map(shown);
        println!("    {name:<40} {median:>10} {min:>10} {p95:>10} {max:>10}");
    }
}

/// A figure with as many digits as tell something: ratios are small.
pub(crate) fn shown(value: f64) -> String {
    let digits = if value.abs() < 10.0 { 3 } else { 1 };
    format!("{value:.digits$}")
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a count of millions, printed with one digit"
)]
pub(crate) fn millions(count: u64) -> f64 {
    count as f64 / 1e6
}
