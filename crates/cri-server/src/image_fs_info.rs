//! ImageFsInfo: what images and writable layers take on the node's disk.

use crate::error::CriError;
use crate::image_service::ImageServer;
use cri_api::v1::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a block as stat(2) counts them.
const STAT_BLOCK: u64 = 512;

/// ImageFsInfo.
pub(crate) async fn image_fs_info(server: &ImageServer) -> Result<ImageFsInfoResponse, CriError> {
    let pods_dir = server.pods_dir.clone();
    server
        .store("the image file system", move |store| {
            let timestamp = crate::clock::now_ns();
            let usage = store.usage()?;
            let image = usage_of(
                timestamp,
                store.dir(),
                usage.blob_bytes.saturating_add(usage.rootfs_bytes),
                usage.files,
            );
            // One file system for both is named once: the kubelet would take two
            // directories of it for two file systems.
            let mount = if same_device(store.dir(), &pods_dir) {
                store.dir()
            } else {
                &pods_dir
            };
            let (bytes, files) = tree(&pods_dir, 0);
            let containers = usage_of(timestamp, mount, bytes, files);
            Ok(ImageFsInfoResponse {
                image_filesystems: vec![image],
                container_filesystems: vec![containers],
            })
        })
        .await
}

fn usage_of(timestamp: i64, dir: &Path, bytes: u64, inodes: u64) -> FilesystemUsage {
    FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier {
            mountpoint: dir.display().to_string(),
        }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: inodes }),
    }
}

fn same_device(a: &Path, b: &Path) -> bool {
    let device = |path: &Path| -> io::Result<u64> { Ok(std::fs::metadata(path)?.dev()) };
    match (device(a), device(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => true,
    }
}

/// Bytes on disk and files below a directory of directories: a sandbox's files lie
/// one level down. What vanishes meanwhile counts as nothing.
fn tree(dir: &Path, depth: usize) -> (u64, u64) {
    let mut sum = (0, 0);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        sum.0 += meta.blocks() * STAT_BLOCK;
        sum.1 += 1;
        if meta.is_dir() && depth == 0 {
            let (bytes, files) = tree(&entry.path(), depth + 1);
            sum.0 += bytes;
            sum.1 += files;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_files_are_counted_as_they_lie_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(tree(dir.path(), 0), (0, 0));
        let pod = dir.path().join("a");
        std::fs::create_dir(&pod).unwrap();
        let scratch = std::fs::File::create(pod.join("scratch.ext4")).unwrap();
        // Sparse: long, but no bytes of the disk.
        scratch.set_len(10 << 30).unwrap();
        std::fs::write(pod.join("kernel.log"), vec![1; 10_000]).unwrap();
        let (bytes, files) = tree(dir.path(), 0);
        assert_eq!(files, 3);
        assert!((10_000..1 << 20).contains(&bytes), "{bytes}");
        assert_eq!(tree(&dir.path().join("none"), 0), (0, 0));
    }
}
