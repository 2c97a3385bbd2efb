//! A guest tries to leave its directory by each known trick: see `inside/escape.rs`
//! for what it does. Here is what must not have happened.

use crate::Test;
use crate::inside::{INSIDE, program_files};
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::{Value, json};
use spherule_tests::cri::{Cri, container_config, sandbox_config};
use spherule_tests::manifest::{container, pod};
use spherule_tests::{Daemon, DaemonOptions};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("of_a_pod_leave_no_directory_of_the_host", of_a_pod),
    ("of_a_cri_container_leave_no_share", of_a_container),
];

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(280);

/// The shares, and around them what the guest must not reach.
struct Host(tempfile::TempDir);

/// What is known of a path: when anything of its inode changed last, and contents.
type Seen = Vec<(PathBuf, (i64, i64), Vec<u8>)>;

impl Host {
    fn new(secret: &str) -> anyhow::Result<Self> {
        let top = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
        for dir in ["share", "second", "outside/d"] {
            fs::create_dir_all(top.path().join(dir))?;
        }
        for file in ["secret", "outside/f", "outside/d/f"] {
            fs::write(top.path().join(file), secret)?;
        }
        fs::write(top.path().join("second/is-second"), "")?;
        // Made by the host, of whom a guest may expect more.
        symlink("../outside", top.path().join("share/outside"))?;
        symlink(top.path().join("secret"), top.path().join("share/secret"))?;
        Ok(Self(top))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// All that is not the guest's to change.
    fn outside(&self) -> anyhow::Result<Seen> {
        let mut seen = Vec::new();
        let names = fs::read_dir(self.0.path())?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut rest: Vec<PathBuf> = names
            .iter()
            .filter(|name| !["share", "second", "gone"].iter().any(|own| name == own))
            .map(|name| self.0.path().join(name))
            .collect();
        while let Some(path) = rest.pop() {
            let meta = fs::symlink_metadata(&path)?;
            let mut content = Vec::new();
            if meta.is_dir() {
                for entry in fs::read_dir(&path)? {
                    rest.push(entry?.path());
                }
            } else {
                content = fs::read(&path)?;
            }
            seen.push((path, (meta.ctime(), meta.ctime_nsec()), content));
        }
        seen.sort();
        Ok(seen)
    }

    /// The host's part of the one trick that has one.
    fn move_out(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while !self.path("share/ready").exists() {
            ensure!(started.elapsed() < PATIENCE, "the guest is never ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        fs::rename(self.path("share/moved"), self.path("gone"))?;
        Ok(fs::write(self.path("share/go"), "")?)
    }

    /// Nothing came to the second share, and what tricks left in the first is not the
    /// host's.
    fn look_inside(&self) -> anyhow::Result<()> {
        let names = fs::read_dir(self.path("second"))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(names == ["is-second"], "{names:?}");
        no_devices(&self.path("share"))
    }
}

fn no_devices(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        ensure!(meta.rdev() == 0, "{} is a device", path.display());
        if meta.is_dir() {
            no_devices(&path)?;
        }
    }
    Ok(())
}

/// A word that nothing else says.
fn secret() -> String {
    format!("outside-only-{}", std::process::id())
}

fn command(secret: &str) -> String {
    format!("/t/test {INSIDE} escape /share /second {secret} 2>&1")
}

fn of_a_pod() -> anyhow::Result<()> {
    let secret = secret();
    let host = Host::new(&secret)?;
    let daemon = Daemon::with(DaemonOptions::allowing("/"))?;
    let before = host.outside()?;
    let of = |name: &str, path: &Path| json!({"name": name, "hostPath": {"path": path}});
    let mut volumes = vec![
        of("share", &host.path("share")),
        of("second", &host.path("second")),
    ];
    let mut mounts = vec![
        json!({"name": "share", "mountPath": "/share"}),
        json!({"name": "second", "mountPath": "/second"}),
    ];
    for (number, (path, place)) in program_files()?.into_iter().enumerate() {
        let name = format!("program-{number}");
        volumes.push(of(&name, &path));
        mounts.push(json!({"name": name, "mountPath": place, "readOnly": true}));
    }
    let tries = json!({"volumeMounts": mounts, "securityContext": {"privileged": true}});
    let tries = container("tries", &command(&secret), tries);
    // A link that the first container planted is the second one's directory.
    let planted = |name: &str, sub_path: &str| {
        let mounts = json!([{"name": "share", "mountPath": "/sub", "subPath": sub_path}]);
        let script = "cat /sub /sub/f; touch /sub/made; echo x >/sub/f";
        container(name, script, json!({"volumeMounts": mounts}))
    };
    let spec = |inits: Vec<Value>| json!({"volumes": volumes, "initContainers": inits});
    daemon.run_detached(&pod(
        "escapes",
        &[planted("a", "planted")],
        spec(vec![tries]),
    ))?;
    host.move_out()?;
    refused(&daemon, "escapes", "planted")?;
    let logs = daemon.cli(["logs", "escapes", "-c", "tries"])?.ok()?;
    ensure!(logs.contains("tricks tried"), "{logs}");
    // The guest had the right to remove it.
    let secret = host.path("share/absolute");
    symlink(host.path("secret"), secret)?;
    for sub_path in ["outside", "outside/d", "absolute", "planted/d"] {
        let name = format!("escapes-{}", sub_path.replace('/', "-"));
        daemon.run_detached(&pod(&name, &[planted("a", sub_path)], spec(Vec::new())))?;
        refused(&daemon, &name, sub_path)?;
    }
    ensure!(host.outside()? == before, "changed: {:?}", host.outside()?);
    host.look_inside()
}

/// The pod's container is not made, for that path's sake.
fn refused(daemon: &Daemon, name: &str, path: &str) -> anyhow::Result<()> {
    let told = daemon.wait_for(name, "refused or over", |pod| {
        pod["containers"][0]["reason"] != "" && pod["containers"][0]["message"] != ""
            || ["PHASE_FAILED", "PHASE_SUCCEEDED"].contains(&pod["phase"].as_str().unwrap_or(""))
    })?;
    ensure!(told["phase"] != "PHASE_SUCCEEDED", "{told:#}");
    ensure!(told.to_string().contains(path), "{told:#}");
    Ok(())
}

fn of_a_container() -> anyhow::Result<()> {
    let secret = secret();
    let host = Host::new(&secret)?;
    let daemon = Daemon::start()?;
    let before = host.outside()?;
    let cri = Cri::connect(&daemon)?;
    let mut sandbox = sandbox_config("escapes", &daemon.dir().join("logs"));
    sandbox.linux.as_mut().context("no linux")?.security_context =
        Some(v1::LinuxSandboxSecurityContext {
            privileged: true,
            ..v1::LinuxSandboxSecurityContext::default()
        });
    let pod = cri.run(&sandbox)?;
    let mount = |path: &Path, place: &str, readonly| v1::Mount {
        host_path: path.display().to_string(),
        container_path: place.to_owned(),
        readonly,
        ..v1::Mount::default()
    };
    let mut mounts = vec![
        mount(&host.path("share"), "/share", false),
        mount(&host.path("second"), "/second", false),
    ];
    for (path, place) in program_files()? {
        mounts.push(mount(&path, &place, true));
    }
    let config = v1::ContainerConfig {
        mounts,
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                privileged: true,
                ..v1::LinuxContainerSecurityContext::default()
            }),
            ..v1::LinuxContainerConfig::default()
        }),
        ..container_config("tries", "sleep 100000")
    };
    let id = cri.create(&pod, config, &sandbox)?;
    cri.start(&id)?;
    let done = std::thread::scope(|scope| {
        let moved = scope.spawn(|| host.move_out());
        let done = cri.exec_within(&id, &["sh", "-c", &command(&secret)], 280);
        let moved = moved.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        let done = done?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(done.exit_code == 0 && moved.is_ok(), "{said} {moved:?}");
        Ok(said)
    })?;
    ensure!(done.contains("tricks tried"), "{done}");
    cri.remove_pod(&pod)?;
    ensure!(host.outside()? == before, "changed: {:?}", host.outside()?);
    host.look_inside()
}
