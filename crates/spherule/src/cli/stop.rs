//! `spherule stop` and `spherule rm`.

use super::client::{Daemon, refused};
use super::output;
use pod_api::v1::{RemovePodRequest, StopPodRequest};

#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// Seconds for the containers to end by themselves [default: the pod's own]
    #[arg(long, short)]
    grace: Option<u32>,
    /// Id, unique prefix of it, name, or namespace/name
    #[arg(required = true)]
    pods: Vec<String>,
}

/// Stops pods one after the other.
pub(crate) async fn stop(mut daemon: Daemon, args: StopArgs) -> anyhow::Result<()> {
    for pod in args.pods {
        let request = StopPodRequest {
            pod: pod.clone(),
            grace_period_seconds: args.grace,
        };
        daemon.pods.stop_pod(request).await.map_err(refused)?;
        output::print(&pod)?;
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Stop a running pod at once
    #[arg(long, short)]
    force: bool,
    /// Id, unique prefix of it, name, or namespace/name
    #[arg(required = true)]
    pods: Vec<String>,
}

/// Removes pods one after the other.
pub(crate) async fn rm(mut daemon: Daemon, args: RmArgs) -> anyhow::Result<()> {
    for pod in args.pods {
        let request = RemovePodRequest {
            pod: pod.clone(),
            force: args.force,
        };
        daemon.pods.remove_pod(request).await.map_err(refused)?;
        output::print(&pod)?;
    }
    Ok(())
}
