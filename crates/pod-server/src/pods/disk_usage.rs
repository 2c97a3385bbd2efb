//! DiskUsage: what images, VMs and logs take of the node's disk.

use crate::status;
use image_store::{Footprint, ImageStore};
use pod_api::v1::{DiskShare, DiskUsageResponse};
use sandbox::{SandboxState, Sandboxes};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tonic::Status;

/// Bytes of a block as stat(2) counts them.
const STAT_BLOCK: u64 = 512;
/// Directories below which nothing of ours lies.
const MAX_DEPTH: usize = 4;

pub(super) async fn disk_usage(
    sandboxes: &Sandboxes,
    images: &ImageStore,
) -> Result<DiskUsageResponse, Status> {
    let (store, root) = (images.clone(), sandboxes.config().root.clone());
    let listed = sandboxes.sandboxes();
    let total = count(listed.len());
    let running: BTreeSet<String> = listed
        .into_iter()
        .filter(|s| matches!(s.state, SandboxState::Creating | SandboxState::Ready))
        .map(|s| s.spec.id)
        .collect();
    let work = move || {
        let disk = store.disk()?;
        Ok(DiskUsageResponse {
            capacity_bytes: disk.capacity,
            available_bytes: disk.available,
            images: Some(of_images(store.footprint()?)),
            pods: Some(of_pods(&root.join("pods"), total, &running)),
            log_bytes: below(&root.join("logs"), MAX_DEPTH),
        })
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Status::internal(format!("the count died: {e}")))?
        .map_err(|e| status::of_image(&e))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn of_images(footprint: Footprint) -> DiskShare {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    DiskShare {
        total: number(footprint.images),
        in_use: number(footprint.in_use),
        bytes: footprint.bytes,
        reclaimable_bytes: footprint.reclaimable_bytes,
    }
}

/// Of the directories of sandboxes, which are named by their ids.
fn of_pods(dir: &Path, total: u32, running: &BTreeSet<String>) -> DiskShare {
    let mut share = DiskShare {
        total,
        in_use: count(running.len()),
        ..DiskShare::default()
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let bytes = below(&entry.path(), MAX_DEPTH);
        share.bytes += bytes;
        let id = entry.file_name();
        if id.to_str().is_none_or(|id| !running.contains(id)) {
            share.reclaimable_bytes += bytes;
        }
    }
    share
}

/// Bytes of the disk below a directory. What vanishes meanwhile counts as nothing,
/// and no link is followed.
fn below(dir: &Path, depth: usize) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .map(|(meta, path)| {
            let own = meta.blocks() * STAT_BLOCK;
            if meta.is_dir() && depth > 0 {
                own + below(&path, depth - 1)
            } else {
                own
            }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_ended_pods_can_be_had_back() {
        let dir = tempfile::tempdir().unwrap();
        for (pod, bytes) in [("a", 100_000), ("b", 300_000)] {
            let pod = dir.path().join(pod);
            std::fs::create_dir(&pod).unwrap();
            std::fs::write(pod.join("kernel.log"), vec![1; bytes]).unwrap();
            std::os::unix::fs::symlink("/", pod.join("out")).unwrap();
            // Long, but no bytes of the disk.
            let scratch = std::fs::File::create(pod.join("scratch.ext4")).unwrap();
            scratch.set_len(10 << 30).unwrap();
        }
        let share = of_pods(dir.path(), 2, &BTreeSet::from(["a".to_owned()]));
        assert_eq!((share.total, share.in_use), (2, 1));
        assert!((400_000..1 << 20).contains(&share.bytes), "{share:?}");
        let back = share.reclaimable_bytes;
        assert!((300_000..390_000).contains(&back), "{share:?}");
        let none = of_pods(&dir.path().join("none"), 0, &BTreeSet::new());
        assert_eq!(none, DiskShare::default());
    }
}
