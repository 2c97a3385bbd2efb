//! `spherule system df` and `spherule system prune`.

use super::client::{Daemon, refused};
use super::{Output, output};
use indicatif::HumanBytes;
use pod_api::v1::{DiskShare, DiskUsageRequest, DiskUsageResponse, PruneImagesRequest};
use std::time::Duration;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show what images, pods and logs take of the disk
    Df,
    /// Remove the images that no pod uses, but for pinned ones
    Prune(PruneArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Only those that came and were last used so long ago, as "24h"
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    unused_for: Duration,
}

/// Runs one of them.
pub(crate) async fn run(daemon: Daemon, command: Command, how: Output) -> anyhow::Result<()> {
    match command {
        Command::Df => df(daemon, how).await,
        Command::Prune(args) => prune(daemon, args, how).await,
    }
}

async fn df(mut daemon: Daemon, how: Output) -> anyhow::Result<()> {
    let usage = daemon.pods.disk_usage(DiskUsageRequest {}).await;
    let usage = usage.map_err(refused)?.into_inner();
    if how == Output::Json {
        output::print_json(&pod_api::to_json("DiskUsageResponse", &usage))?;
        return Ok(());
    }
    let headings = ["TYPE", "TOTAL", "IN USE", "SIZE", "RECLAIMABLE"];
    output::print_table(&headings, rows(&usage))?;
    let (free, all) = (usage.available_bytes, usage.capacity_bytes);
    output::print(format_args!(
        "{} of {} are free",
        HumanBytes(free),
        HumanBytes(all)
    ))?;
    Ok(())
}

fn rows(usage: &DiskUsageResponse) -> Vec<Vec<String>> {
    let row = |name: &str, share: &DiskShare| {
        vec![
            name.to_owned(),
            share.total.to_string(),
            share.in_use.to_string(),
            HumanBytes(share.bytes).to_string(),
            HumanBytes(share.reclaimable_bytes).to_string(),
        ]
    };
    let dash = || "-".to_owned();
    let logs = HumanBytes(usage.log_bytes).to_string();
    vec![
        row("Images", &usage.images.unwrap_or_default()),
        row("Pods", &usage.pods.unwrap_or_default()),
        vec!["Logs".to_owned(), dash(), dash(), logs, dash()],
    ]
}

async fn prune(mut daemon: Daemon, args: PruneArgs, how: Output) -> anyhow::Result<()> {
    let request = PruneImagesRequest {
        unused_for_seconds: args.unused_for.as_secs(),
    };
    let pruned = daemon.images.prune_images(request).await;
    let pruned = pruned.map_err(refused)?.into_inner();
    if how == Output::Json {
        output::print_json(&pod_api::to_json("PruneImagesResponse", &pruned))?;
        return Ok(());
    }
    for image in &pruned.images {
        let names = [&image.tags, &image.digests];
        let name = names.into_iter().flatten().next().unwrap_or(&image.id);
        output::print(format_args!("removed {name}"))?;
    }
    output::print(format_args!("freed {}", HumanBytes(pruned.freed_bytes)))?;
    Ok(())
}
