//! `spherule run`: creates a pod, shows how it comes up, follows its output, and
//! ends with its result.

use super::client::{Daemon, refused};
use super::logs::Printer;
use super::{EngineArg, list, output};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use pod_api::v1::{
    Container, Engine, LogsRequest, Phase, Pod, RemovePodRequest, RunPodRequest, StopPodRequest,
    WatchPodRequest, WatchPodResponse, container::State,
};
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The manifest: a file with one v1.Pod as YAML or JSON, and objects that it
    /// needs beside it, or `-` for standard input
    #[arg(long, short)]
    file: String,
    /// Engine for this pod [default: the daemon's]
    #[arg(long, value_enum)]
    engine: Option<EngineArg>,
    /// Print the pod's id when it is recorded, and leave it to itself
    #[arg(long, short)]
    detach: bool,
    /// Remove the pod when it has ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// At the end, print how long each stage of the start took
    #[arg(long, conflicts_with = "detach")]
    timings: bool,
}

/// Exits as the pod does: 0 where it succeeded, else with the code of the first
/// container that failed.
pub(crate) async fn run(mut daemon: Daemon, args: Args) -> anyhow::Result<ExitCode> {
    let request = RunPodRequest {
        manifest: read_manifest(&args.file)?,
        engine: match args.engine {
            None | Some(EngineArg::Auto) => Engine::Unspecified.into(),
            Some(EngineArg::Kvm) => Engine::Kvm.into(),
            Some(EngineArg::Qemu) => Engine::Qemu.into(),
        },
    };
    let pod = daemon
        .pods
        .run_pod(request)
        .await
        .map_err(refused)?
        .into_inner()
        .pod;
    let id = pod.context("the daemon answered without a pod")?.id;
    if args.detach {
        output::print(&id)?;
        return Ok(ExitCode::SUCCESS);
    }
    let pod = tokio::select! {
        pod = follow(&mut daemon, &id) => pod?,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("stopping the pod; once more to leave it to itself");
            tokio::select! {
                pod = stop(&mut daemon, &id) => pod?,
                _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(130)),
            }
        }
    };
    if args.timings {
        print_timings(&pod)?;
    }
    if args.rm {
        let request = RemovePodRequest {
            pod: id,
            force: true,
        };
        daemon.pods.remove_pod(request).await.map_err(refused)?;
    }
    Ok(result(&pod))
}

pub(super) fn read_manifest(file: &str) -> anyhow::Result<String> {
    if file == "-" {
        let mut manifest = String::new();
        std::io::stdin()
            .read_to_string(&mut manifest)
            .context("cannot read standard input")?;
        return Ok(manifest);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read the manifest {file}"))
}

/// Shows the start, then the output, until the pod has ended.
async fn follow(daemon: &mut Daemon, id: &str) -> anyhow::Result<Pod> {
    let watch = WatchPodRequest { pod: id.into() };
    let mut changes = daemon
        .pods
        .watch_pod(watch)
        .await
        .map_err(refused)?
        .into_inner();
    let request = LogsRequest {
        pod: id.into(),
        follow: true,
        ..LogsRequest::default()
    };
    let mut lines = daemon
        .pods
        .logs(request)
        .await
        .map_err(refused)?
        .into_inner();
    let mut printer = Printer::new(true, false);
    let mut progress = Some(Progress::new());
    let mut trouble = None;
    let mut addresses = Vec::new();
    let mut pod = Pod::default();
    let (mut watching, mut reading) = (true, true);
    while watching || reading {
        tokio::select! {
            change = changes.message(), if watching => match change.map_err(refused)? {
                Some(WatchPodResponse { pod: Some(now) }) => {
                    pod = now;
                    let now = waits_for(&pod);
                    if now != trouble {
                        trouble = now;
                        if let Some(trouble) = &trouble {
                            progress = None;
                            eprintln!("{trouble}");
                        }
                    }
                    if !pod.pod_ips.is_empty() && pod.pod_ips != addresses {
                        addresses.clone_from(&pod.pod_ips);
                        let shown = addresses.join(", ");
                        hidden(&progress, || eprintln!("pod {}: {shown}", pod.name));
                    }
                    if let Some(progress) = &mut progress {
                        progress.show(&pod);
                    }
                    watching = !ended(&pod);
                }
                _ => watching = false,
            },
            line = lines.message(), if reading => match line.map_err(refused)? {
                Some(line) => {
                    // Output and a progress line do not mix.
                    progress = None;
                    printer.print(&line)?;
                }
                None => reading = false,
            },
        }
    }
    Ok(pod)
}

/// Says something between two states of the progress line.
fn hidden(progress: &Option<Progress>, say: impl FnOnce()) {
    match progress {
        Some(progress) => progress.0.suspend(say),
        None => say(),
    }
}

/// What keeps a container from starting, where that may last: a volume or an image
/// that cannot be had, a pause after failures.
fn waits_for(pod: &Pod) -> Option<String> {
    if pod.phase() == Phase::Pending && !pod.message.is_empty() {
        return Some(format!("the pod waits: {}: {}", pod.reason, pod.message));
    }
    let mut all = pod.init_containers.iter().chain(&pod.containers);
    let held = all.find(|c| c.state() == State::Waiting && !c.message.is_empty())?;
    Some(format!(
        "container {} waits: {}: {}",
        held.name, held.reason, held.message
    ))
}

async fn stop(daemon: &mut Daemon, id: &str) -> anyhow::Result<Pod> {
    let request = StopPodRequest {
        pod: id.into(),
        grace_period_seconds: None,
    };
    let pod = daemon
        .pods
        .stop_pod(request)
        .await
        .map_err(refused)?
        .into_inner()
        .pod;
    Ok(pod.unwrap_or_default())
}

fn ended(pod: &Pod) -> bool {
    matches!(pod.phase(), Phase::Succeeded | Phase::Failed)
}

/// The process's exit code for an ended pod; says why on stderr where it failed.
fn result(pod: &Pod) -> ExitCode {
    if pod.phase() == Phase::Succeeded {
        return ExitCode::SUCCESS;
    }
    let failed = |c: &&Container| c.state() == State::Terminated && c.exit_code != 0;
    let container = pod
        .init_containers
        .iter()
        .chain(&pod.containers)
        .find(failed);
    let mut why = format!("pod {} ended as {}", pod.name, list::status(pod));
    if !pod.message.is_empty() {
        why = format!("{why}: {}", pod.message);
    }
    if let Some(c) = container {
        why = format!(
            "{why}; container {} exited with {} ({})",
            c.name, c.exit_code, c.reason
        );
        if !c.message.is_empty() {
            why = format!("{why}: {}", c.message);
        }
    }
    eprintln!("{why}");
    let code = container
        .and_then(|c| u8::try_from(c.exit_code).ok())
        .unwrap_or(1);
    ExitCode::from(code)
}

/// One line that says what the pod waits for; nothing where stderr is no terminal.
struct Progress(ProgressBar);

impl Progress {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    fn show(&mut self, pod: &Pod) {
        let done = pod
            .stages
            .last()
            .map_or(String::new(), |s| format!(", done: {}", s.name));
        self.0
            .set_message(format!("{} is {}{done}", pod.name, list::status(pod)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn print_timings(pod: &Pod) -> std::io::Result<()> {
    let origin = pod
        .stages
        .iter()
        .map(|s| s.started_at_ns)
        .min()
        .unwrap_or_default();
    let rows = pod
        .stages
        .iter()
        .map(|s| {
            let start = output::duration(s.started_at_ns - origin);
            vec![s.name.clone(), start, output::duration(s.duration_ns)]
        })
        .collect();
    output::print("")?;
    output::print_table(&["STAGE", "STARTED AFTER", "TOOK"], rows)?;
    output::print("")
}
