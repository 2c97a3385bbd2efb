//! A pod with every kind of mount that our own pods can have.

use crate::block_volumes::{claim, volume};
use crate::inside::program_files;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use spherule_tests::manifest::{container, documents, pod};
use spherule_tests::{Daemon, DaemonOptions};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use test_images::{Compression, Layer, busybox_image};

/// The image whose path `/volume` is a volume, and whose directories hold what root
/// left there: a user finds it in the layers below an overlay.
const IMAGE: &str = "localhost/every-kind:1";

/// The kinds: a share, a directory beneath one, an emptyDir on disk and in memory,
/// claims on file systems, a directory of such a volume, the image's volume, and the
/// overlay that is the container's root.
pub(crate) const KINDS: [&str; 9] = [
    "/share",
    "/share-sub",
    "/disk",
    "/memory",
    "/ext4",
    "/xfs",
    "/ext4-sub",
    "/volume",
    "/tmp",
];

/// A daemon, and the files of its host that pods have.
pub(crate) struct EveryKind {
    pub(crate) daemon: Daemon,
    host: tempfile::TempDir,
}

impl EveryKind {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let daemon = Daemon::with(DaemonOptions::allowing("/"))?;
        // On the disk that this program lies on: a tmpfs may lack what is tried.
        let host = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
        let this = Self { daemon, host };
        fs::create_dir(this.share())?;
        fs::set_permissions(this.share(), Permissions::from_mode(0o777))?;
        let mut layer = Layer::default();
        for dir in ["tmp", "volume"] {
            layer = layer
                .dir(dir, 0o1777)?
                .dir(&format!("{dir}/of-root"), 0o1777)?
                .dir(&format!("{dir}/of-root/d"), 0o755)?;
        }
        let image = busybox_image(IMAGE)?
            .layer(layer.into_bytes()?, Compression::Gzip)
            .config(json!({"Env": ["PATH=/bin"], "Volumes": {"/volume": {}}}));
        let archive = this.daemon.dir().join("every-kind.tar");
        fs::write(&archive, image.archive()?)?;
        let archive = archive.to_str().context("plain path")?;
        this.daemon.cli(["import", archive])?.ok()?;
        let mut objects = Vec::new();
        // XFS wants 300 MiB; ext4 has blocks of 4 KiB, and links as long as that, from
        // 512 MiB on.
        for (kind, mib) in [("ext4", 640), ("xfs", 320)] {
            File::create(this.disk(kind))?.set_len(mib << 20)?;
            let source = json!({"fsType": kind});
            let path = this.disk(kind);
            objects.push(volume(kind, &path, "Filesystem", source, json!({})));
            objects.push(claim(kind, "Filesystem"));
        }
        this.daemon.apply(&documents(&objects))?.ok()?;
        Ok(this)
    }

    /// The directory of the host that the pod has at `/share`.
    pub(crate) fn share(&self) -> PathBuf {
        self.host.path().join("share")
    }

    /// The file that a block volume is on.
    fn disk(&self, kind: &str) -> PathBuf {
        self.host.path().join(format!("{kind}.img"))
    }

    /// A pod of containers that run these scripts as these users, one after the
    /// other: the one that is made last is the pod's own.
    pub(crate) fn pod(&self, name: &str, scripts: &[(&str, u32)]) -> anyhow::Result<String> {
        let mut volumes = vec![
            json!({"name": "share", "hostPath": {"path": self.share()}}),
            json!({"name": "disk", "emptyDir": {}}),
            json!({"name": "memory", "emptyDir": {"medium": "Memory"}}),
            claimed("ext4"),
            claimed("xfs"),
        ];
        let mut mounts: Vec<Value> = volumes
            .iter()
            .map(|volume| mount(volume["name"].as_str().unwrap_or_default(), ""))
            .collect();
        mounts.extend(["share", "ext4"].map(|name| mount(name, "sub/dir")));
        for (number, (path, place)) in program_files()?.into_iter().enumerate() {
            let name = format!("program-{number}");
            volumes.push(json!({"name": name, "hostPath": {"path": path}}));
            mounts.push(json!({"name": name, "mountPath": place, "readOnly": true}));
        }
        let mut containers: Vec<Value> = scripts
            .iter()
            .enumerate()
            .map(|(number, (script, user))| {
                let extra = json!({
                    "image": IMAGE, "volumeMounts": mounts,
                    "securityContext": {"runAsUser": user, "runAsGroup": user},
                });
                container(&format!("c{number}"), script, extra)
            })
            .collect();
        let last = containers.pop().context("no script")?;
        let spec = json!({"volumes": volumes, "initContainers": containers});
        Ok(pod(name, &[last], spec))
    }

    /// A file that a pod which is over left on the ext4 volume; both file systems are
    /// looked through before.
    pub(crate) fn left_on_ext4(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        host(Command::new("xfs_repair").arg("-n").arg(self.disk("xfs")))?;
        on_ext4(&self.disk("ext4"), path)
    }
}

/// A file on an image of a sound ext4 file system.
pub(crate) fn on_ext4(disk: &Path, path: &str) -> anyhow::Result<Vec<u8>> {
    host(Command::new("e2fsck").args(["-f", "-n"]).arg(disk))?;
    let copy = disk.with_extension("copy");
    let dump = format!("dump {path} {}", copy.display());
    host(Command::new("debugfs").args(["-R", &dump]).arg(disk))?;
    Ok(fs::read(copy)?)
}

fn claimed(name: &str) -> Value {
    json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
}

/// Of the whole volume at `/NAME`, or of a directory of it at `/NAME-sub`.
fn mount(name: &str, sub_path: &str) -> Value {
    let place = if sub_path.is_empty() { "" } else { "-sub" };
    json!({"name": name, "mountPath": format!("/{name}{place}"), "subPath": sub_path})
}

fn host(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

/// What fsx left in a directory of the host.
pub(crate) fn left_in(directory: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(fs::read(directory.join("fsx"))?)
}
