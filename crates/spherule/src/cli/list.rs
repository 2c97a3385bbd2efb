//! `spherule ps`.

use super::client::{Daemon, refused};
use super::{Output, output};
use anyhow::Context;
use pod_api::v1::{ListPodsRequest, Phase, Pod, container::State};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pods that have ended, too
    #[arg(long, short)]
    all: bool,
    /// Only pods with this label, as `key=value`; may be given several times
    #[arg(long, short = 'l')]
    selector: Vec<String>,
}

/// Prints a line a pod.
pub(crate) async fn run(mut daemon: Daemon, args: Args, how: Output) -> anyhow::Result<()> {
    let label_selector = args
        .selector
        .iter()
        .map(|s| {
            let (key, value) = s.split_once('=').with_context(|| {
                format!("--selector {s}: must be a label and its value, as app=web")
            })?;
            Ok((key.into(), value.into()))
        })
        .collect::<anyhow::Result<_>>()?;
    let request = ListPodsRequest { label_selector };
    let mut pods = daemon
        .pods
        .list_pods(request)
        .await
        .map_err(refused)?
        .into_inner()
        .pods;
    if !args.all {
        pods.retain(|p| matches!(p.phase(), Phase::Pending | Phase::Running));
    }
    if how == Output::Json {
        let pods = pods.iter().map(|p| pod_api::to_json("Pod", p)).collect();
        output::print_json(&serde_json::Value::Array(pods))?;
        return Ok(());
    }
    let headings = [
        "ID",
        "NAMESPACE",
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "IP",
        "ENGINE",
        "CREATED",
    ];
    output::print_table(&headings, pods.iter().map(row).collect())?;
    Ok(())
}

fn row(pod: &Pod) -> Vec<String> {
    let running = pod
        .containers
        .iter()
        .filter(|c| c.state() == State::Running)
        .count();
    let restarts: u32 = pod
        .containers
        .iter()
        .chain(&pod.init_containers)
        .map(|c| c.restart_count)
        .sum();
    vec![
        pod.id.chars().take(12).collect(),
        pod.namespace.clone(),
        pod.name.clone(),
        format!("{running}/{}", pod.containers.len()),
        status(pod),
        restarts.to_string(),
        pod.pod_ips.first().cloned().unwrap_or_else(|| "-".into()),
        output::word(pod.engine().as_str_name(), "ENGINE_").to_lowercase(),
        output::age(pod.created_at_ns),
    ]
}

/// One word for a pod, as kubectl gives it: the most telling of the reasons of
/// the pod and its containers, else the phase.
pub(crate) fn status(pod: &Pod) -> String {
    if !pod.reason.is_empty() {
        return pod.reason.clone();
    }
    let waiting = pod
        .init_containers
        .iter()
        .chain(&pod.containers)
        .find(|c| c.state() == State::Waiting && !c.reason.is_empty());
    match (pod.phase(), waiting) {
        (Phase::Pending | Phase::Running, Some(container)) => container.reason.clone(),
        (phase, _) => output::word(phase.as_str_name(), "PHASE_"),
    }
}
