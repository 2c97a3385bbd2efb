//! Starts pods one after the other and reads the stages that the daemon recorded.

use crate::memory;
use crate::statistics::Summary;
use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use spherule_tests::{Daemon, DaemonOptions};

/// What was measured on one engine.
#[derive(Debug, Serialize)]
pub(crate) struct EngineReport {
    pub(crate) engine: String,
    /// Why `auto` would or would not take it: the daemon's words.
    pub(crate) detail: String,
    /// Milliseconds, each counted from the pod's acceptance to the stage's end.
    pub(crate) reached_ms: Vec<Figure>,
    /// Milliseconds that each stage took by itself.
    pub(crate) stages_ms: Vec<Figure>,
    /// KiB, proportional set sizes while the pod runs.
    pub(crate) memory_kib: Vec<Figure>,
}

/// A named figure.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) summary: Summary,
}

/// A pod that says when it runs, then waits to be looked at.
const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: bench}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
    - name: c
      image: localhost/busybox:demo
      imagePullPolicy: Never
      command: [sh, -c, 'echo up; exec sleep 3600']
      resources: {limits: {cpu: '1', memory: 128Mi}}
";

/// Figures of several runs, by name, in the order they first came.
#[derive(Default)]
struct Collected(Vec<(String, Vec<f64>)>);

impl Collected {
    fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.into(), vec![value])),
        }
    }

    fn figures(self) -> Vec<Figure> {
        let figure = |(name, values)| {
            Some(Figure {
                name,
                summary: Summary::of(values)?,
            })
        };
        self.0.into_iter().filter_map(figure).collect()
    }
}

/// Runs the pod `runs` times on one engine, after one run that warms the caches.
pub(crate) fn measure(engine: &str, runs: usize) -> anyhow::Result<EngineReport> {
    let options = DaemonOptions {
        engine: engine.into(),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::with(options)?;
    let info = daemon.cli(["info", "--output", "json"])?.json()?;
    let detail = info["engineReason"].as_str().unwrap_or_default().to_owned();
    let (mut reached, mut stages, mut memory) = (
        Collected::default(),
        Collected::default(),
        Collected::default(),
    );
    for run in 0..=runs {
        eprintln!(
            "{engine}: run {run} of {runs}{}",
            if run == 0 { " (warm-up)" } else { "" }
        );
        let id = daemon.run_detached(MANIFEST)?;
        let pod = daemon.wait_for(&id, "running", |pod| {
            pod["containers"][0]["state"] == "STATE_RUNNING" || pod["phase"] == "PHASE_FAILED"
        })?;
        anyhow::ensure!(pod["phase"] != "PHASE_FAILED", "the pod failed: {pod:#}");
        if run > 0 {
            collect_stages(&pod, &mut reached, &mut stages)?;
            collect_memory(&pod, &mut memory)?;
        }
        daemon.cli(["rm", "--force", &id])?.ok()?;
    }
    Ok(EngineReport {
        engine: engine.into(),
        detail,
        reached_ms: reached.figures(),
        stages_ms: stages.figures(),
        memory_kib: memory.figures(),
    })
}

fn collect_stages(
    pod: &Value,
    reached: &mut Collected,
    alone: &mut Collected,
) -> anyhow::Result<()> {
    let accepted = pod["createdAtNs"].as_i64().context("createdAtNs")?;
    for stage in pod["stages"].as_array().context("stages")? {
        let name = stage["name"].as_str().context("name")?;
        let started = stage["startedAtNs"].as_i64().context("startedAtNs")?;
        let took = stage["durationNs"].as_i64().context("durationNs")?;
        alone.add(name, to_ms(took));
        reached.add(name, to_ms(started + took - accepted));
    }
    Ok(())
}

fn collect_memory(pod: &Value, to: &mut Collected) -> anyhow::Result<()> {
    let vmm = pod["vm"]["vmmPid"].as_u64().context("vmmPid")?;
    let guest_mib = pod["vm"]["memoryMib"].as_u64().context("memoryMib")?;
    let mut sum = memory::of_process(vmm, guest_mib)?;
    to.add("spherule-vmm alone", kib(sum.vmm));
    for child in children(vmm)? {
        let pss = memory::of_process(child, guest_mib)?;
        sum.guest += pss.guest;
        sum.vmm += pss.vmm;
    }
    to.add("VMM and its children", kib(sum.vmm));
    to.add("guest memory", kib(sum.guest));
    Ok(())
}

fn children(pid: u64) -> anyhow::Result<Vec<u64>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let list = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        found.extend(
            list.split_ascii_whitespace()
                .filter_map(|p| p.parse::<u64>().ok()),
        );
    }
    Ok(found)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "durations of seconds in nanoseconds"
)]
fn to_ms(ns: i64) -> f64 {
    ns as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "memory of a process in KiB")]
fn kib(value: u64) -> f64 {
    value as f64
}
