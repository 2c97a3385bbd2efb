//! `spherule debug`: adds an ephemeral container to a running pod, and is its
//! terminal, or shows its output, to its end.

use super::client::{Daemon, refused};
use super::logs::Printer;
use super::output;
use super::session::Streams;
use anyhow::{Context, bail};
use pod_api::v1::{
    AddEphemeralContainerRequest, AttachStart, Container, GetPodRequest, LogsRequest, Pod,
    WatchPodRequest, container::State,
};
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The container whose processes it sees
    #[arg(long)]
    target: Option<String>,
    /// What it runs on [default: the image of the target, or of the pod's first
    /// container]
    #[arg(long)]
    image: Option<String>,
    /// Always, IfNotPresent or Never [default: Always for the tag latest]
    #[arg(long, requires = "image")]
    image_pull_policy: Option<String>,
    /// Its name [default: debugger-1, ...]
    #[arg(long)]
    name: Option<String>,
    /// Pass our standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give it a terminal (^P ^Q detaches)
    #[arg(long, short)]
    tty: bool,
    /// Print its name when it is added, and leave it to itself
    #[arg(long, short, conflicts_with_all = ["stdin", "tty"])]
    detach: bool,
    /// Id, unique prefix of it, name, or namespace/name
    pod: String,
    /// Program and arguments [default: the image's]
    #[arg(last = true)]
    command: Vec<String>,
}

/// The exit code is the container's, or 0 where we leave it.
pub(crate) async fn run(mut daemon: Daemon, args: Args) -> anyhow::Result<ExitCode> {
    let pod = get(&mut daemon, &args.pod).await?;
    let name = args.name.clone().unwrap_or_else(|| free_name(&pod));
    let request = AddEphemeralContainerRequest {
        pod: pod.id.clone(),
        container: container(&pod, &name, &args)?.to_string(),
    };
    let added = daemon.pods.add_ephemeral_container(request).await;
    added.map_err(refused)?;
    if args.detach {
        output::print(&name)?;
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("container {name} of pod {}", pod.name);
    let begun = begun(&mut daemon, &pod.id, &name).await?;
    if (args.stdin || args.tty) && begun.state() == State::Running {
        let start = AttachStart {
            pod: pod.id.clone(),
            container: name.clone(),
            stdin: args.stdin,
            terminal: args.tty,
        };
        match Streams::attach(&mut daemon, start).await {
            Ok(streams) => return streams.serve(args.stdin, args.tty, true).await,
            // It may have ended meanwhile: then its log has all that it said.
            Err(error) => {
                let now = get(&mut daemon, &pod.id).await?;
                if find(&now, &name)?.state() == State::Running {
                    return Err(error);
                }
            }
        }
    }
    show(&mut daemon, &pod.id, &name).await?;
    let pod = get(&mut daemon, &pod.id).await?;
    let ended = find(&pod, &name)?;
    if !ended.message.is_empty() {
        eprintln!("container {name}: {}: {}", ended.reason, ended.message);
    }
    Ok(ExitCode::from(
        u8::try_from(ended.exit_code).unwrap_or(u8::MAX),
    ))
}

async fn get(daemon: &mut Daemon, pod: &str) -> anyhow::Result<Pod> {
    let request = GetPodRequest {
        pod: pod.to_owned(),
    };
    let answer = daemon.pods.get_pod(request).await.map_err(refused)?;
    let pod = answer.into_inner().pod;
    pod.context("the daemon answered without a pod")
}

fn find<'a>(pod: &'a Pod, name: &str) -> anyhow::Result<&'a Container> {
    let mut all = pod.ephemeral_containers.iter();
    let found = all.find(|container| container.name == name);
    found.with_context(|| format!("pod {} has no ephemeral container {name}", pod.name))
}

/// The first name that none of the pod's containers has.
fn free_name(pod: &Pod) -> String {
    let others = pod.init_containers.iter().chain(&pod.containers);
    let taken: Vec<_> = others.chain(&pod.ephemeral_containers).collect();
    let mut names = (1..).map(|number| format!("debugger-{number}"));
    let free = names.find(|name| taken.iter().all(|container| container.name != *name));
    free.unwrap_or_default()
}

/// The `v1.EphemeralContainer`.
fn container(pod: &Pod, name: &str, args: &Args) -> anyhow::Result<serde_json::Value> {
    let target = args.target.as_deref().unwrap_or_default();
    let mut container = json!({
        "name": name,
        "targetContainerName": target,
        "command": args.command,
        "stdin": args.stdin,
        // What is piped in ends; a terminal can be left and come back to.
        "stdinOnce": args.stdin && !args.tty,
        "tty": args.tty,
    });
    if let Some(image) = &args.image {
        container["image"] = json!(image);
        container["imagePullPolicy"] = json!(args.image_pull_policy);
    } else {
        let named = |container: &&Container| target.is_empty() || container.name == target;
        let mut all = pod.containers.iter().chain(&pod.init_containers);
        // A target that is not there is the daemon's to refuse.
        let model = all.find(named).or(pod.containers.first());
        container["image"] = json!(model.context("the pod has no containers")?.image);
        // It is here already.
        container["imagePullPolicy"] = json!("IfNotPresent");
    }
    Ok(container)
}

/// Waits until it runs or has ended; says meanwhile what it waits for.
async fn begun(daemon: &mut Daemon, pod: &str, name: &str) -> anyhow::Result<Container> {
    let request = WatchPodRequest {
        pod: pod.to_owned(),
    };
    let changes = daemon.pods.watch_pod(request).await.map_err(refused)?;
    let mut changes = changes.into_inner();
    let mut told = String::new();
    while let Some(change) = changes.message().await.map_err(refused)? {
        let pod = change.pod.unwrap_or_default();
        let container = find(&pod, name)?;
        if container.state() != State::Waiting {
            return Ok(container.clone());
        }
        if !container.message.is_empty() && container.message != told {
            told.clone_from(&container.message);
            eprintln!("it waits: {}: {told}", container.reason);
        }
    }
    bail!("the pod was removed")
}

/// Shows what it writes, from its start to its end.
async fn show(daemon: &mut Daemon, pod: &str, name: &str) -> anyhow::Result<()> {
    let request = LogsRequest {
        pod: pod.to_owned(),
        containers: vec![name.to_owned()],
        follow: true,
        ..LogsRequest::default()
    };
    let lines = daemon.pods.logs(request).await.map_err(refused)?;
    let mut lines = lines.into_inner();
    let mut printer = Printer::new(false, false);
    while let Some(line) = lines.message().await.map_err(refused)? {
        printer.print(&line)?;
    }
    Ok(())
}
