//! Starts pods one after the other and reads the stages that the daemon recorded.

use crate::memory;
use crate::report::{Collected, Figure, Section};
use anyhow::Context;
use serde_json::Value;
use spherule_tests::Daemon;

/// A pod that says when it runs, then waits to be looked at.
pub(crate) const MANIFEST: &str = "
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

/// Runs the pod `runs` times, after one run that warms the caches.
pub(crate) fn measure(daemon: &Daemon, runs: usize) -> anyhow::Result<Vec<Section>> {
    let (mut reached, mut stages, mut memory) = (
        Collected::default(),
        Collected::default(),
        Collected::default(),
    );
    for run in 0..=runs {
        eprintln!(
            "pod start: run {run} of {runs}{}",
            if run == 0 { " (warm-up)" } else { "" }
        );
        let id = daemon.run_detached(MANIFEST)?;
        let pod = running(daemon, &id)?;
        if run > 0 {
            collect_stages(&pod, &mut reached, &mut stages)?;
            collect_memory(&pod, &mut memory)?;
        }
        daemon.cli(["rm", "--force", &id])?.ok()?;
    }
    let mut reached = reached.section("reached after the pod was accepted, ms");
    let mut stages = stages.section("each stage by itself, ms");
    let by_median = |a: &Figure, b: &Figure| a.summary.median.total_cmp(&b.summary.median);
    reached.figures.sort_by(by_median);
    let order = |stage: &Figure| reached.figures.iter().position(|r| r.name == stage.name);
    stages.figures.sort_by_key(order);
    let memory = memory.section("memory while the pod runs (PSS), KiB");
    Ok(vec![reached, stages, memory])
}

/// Waits until a pod's container runs; all that is known of the pod.
pub(crate) fn running(daemon: &Daemon, pod: &str) -> anyhow::Result<Value> {
    let pod = daemon.wait_for(pod, "running", |pod| {
        pod["containers"][0]["state"] == "STATE_RUNNING" || pod["phase"] == "PHASE_FAILED"
    })?;
    anyhow::ensure!(pod["phase"] != "PHASE_FAILED", "the pod failed: {pod:#}");
    Ok(pod)
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

/// Processes that a process has started.
pub(crate) fn children(pid: u64) -> anyhow::Result<Vec<u64>> {
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
pub(crate) fn to_ms(ns: i64) -> f64 {
    ns as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "memory of a process in KiB")]
fn kib(value: u64) -> f64 {
    value as f64
}
