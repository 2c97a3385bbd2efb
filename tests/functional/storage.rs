//! Files on every kind of mount: what POSIX promises, random operations, room that
//! comes back, limits that bind one pod alone, directories that pods share.

use crate::every_kind::{EveryKind, KINDS, left_in};
use crate::inside::{INSIDE, checksum};
use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use spherule_tests::manifest::{container, pod};
use spherule_tests::{Daemon, DaemonOptions, Ran};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("every_kind_of_mount_keeps_what_posix_promises", every_mount),
    ("two_pods_share_a_directory_of_the_host", two_pods),
    ("deleted_files_give_their_room_back", discard),
    ("ephemeral_storage_binds_a_container_and_a_pod", limits),
    ("a_full_disk_is_full_for_its_pod_alone", full_for_one),
];

/// Those that take minutes.
pub(crate) const LONG: &[Test] = &[
    ("many_random_operations_on_every_mount", many_operations),
    ("a_hundred_thousand_files_and_a_huge_one", many_files),
];

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(180);

/// A daemon whose pods may have any directory of the host.
fn open_daemon() -> anyhow::Result<Daemon> {
    Daemon::with(DaemonOptions::allowing("/"))
}

/// A directory on the disk that this program lies on: a tmpfs may lack what is
/// tried here.
fn host_dir() -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
    Ok(dir)
}

fn host_path(name: &str, path: &Path) -> Value {
    json!({"name": name, "hostPath": {"path": path}})
}

fn inside(command: &str) -> String {
    format!("/t/test {INSIDE} {command} 2>&1")
}

fn every_mount() -> anyhow::Result<()> {
    let kinds = EveryKind::new()?;
    let all = KINDS.join(" ");
    // The mounts are root's by themselves; a user shall be able to write there, too.
    let root = format!(
        "chmod 777 {all} && {} && {}",
        inside(&format!("posix {all}")),
        inside(&format!("fsx 600 1 {all}"))
    );
    // What root left is there, and so are its rights.
    let user = inside(&format!("posix {all}"));
    let pod = kinds.pod("every-mount", &[(&root, 0), (&user, 1000)])?;
    let out = kinds.daemon.run(&pod)?.ok()?;
    ensure!(out.matches("POSIX checks passed").count() == 2, "{out}");
    // Only then its volumes are unmounted for certain.
    kinds.daemon.cli(["rm", "every-mount"])?.ok()?;
    random_operations_left(&kinds, &out, 600)
}

/// As many operations as were asked for, and the host has what the guest had at
/// the end.
fn random_operations_left(kinds: &EveryKind, out: &str, operations: u32) -> anyhow::Result<()> {
    let said = |kind: &str, bytes: Option<Vec<u8>>| {
        let sum = bytes.map(|bytes| format!("{:016x}", checksum(&bytes)));
        let line = format!(
            "{kind}: {operations} operations, {}",
            sum.unwrap_or_default()
        );
        ensure!(out.contains(&line), "{line}:\n{out}");
        Ok(())
    };
    for kind in KINDS {
        said(kind, None)?;
    }
    said("/share", Some(left_in(&kinds.share())?))?;
    said("/share-sub", Some(left_in(&kinds.share().join("sub/dir"))?))?;
    said("/ext4", Some(kinds.left_on_ext4("/fsx")?))?;
    said("/ext4-sub", Some(kinds.left_on_ext4("/sub/dir/fsx")?))
}

fn many_operations() -> anyhow::Result<()> {
    let kinds = EveryKind::new()?;
    let seed = std::process::id();
    let script = inside(&format!("fsx 20000 {seed} {}", KINDS.join(" ")));
    let pod = kinds.pod("many-operations", &[(&script, 0)])?;
    let out = kinds.daemon.run(&pod)?.ok()?;
    kinds.daemon.cli(["rm", "many-operations"])?.ok()?;
    random_operations_left(&kinds, &out, 20_000)
}

/// In steps: each has the patience that a busy machine needs for so many files.
fn many_files() -> anyhow::Result<()> {
    let kinds = EveryKind::new()?;
    let name = "many-files";
    let idle = kinds.pod(name, &[("exec sleep 100000", 0)])?;
    kinds.daemon.run_detached(&idle)?;
    kinds.daemon.wait_for(name, "running", |pod| {
        pod["containers"][0]["state"] == "STATE_RUNNING"
    })?;
    let size = 10_u64 << 30;
    for dir in ["/share", "/disk"] {
        let step = |script: &str| {
            let started = Instant::now();
            let out = exec(&kinds.daemon, name, &format!("set -e; cd {dir}; {script}"))?.ok()?;
            println!("{dir}: {:?} for {script}", started.elapsed());
            Ok::<_, anyhow::Error>(out)
        };
        step("mkdir many; cd many; seq 50000 | while read n; do echo $n >$n; done")?;
        step("cd many; seq 50001 100000 | while read n; do echo $n >$n; done")?;
        step("cd many; test $(ls | wc -l) = 100000; test \"$(cat 77777)\" = 77777")?;
        step("rm -r many; test ! -e many")?;
        let huge = "dd if=/dev/zero of=huge bs=1M seek=10239 count=1 2>/dev/null; \
            stat -c %s huge; test $(stat -c %b huge) -lt 10000";
        ensure!(step(huge)? == format!("{size}\n"));
    }
    ensure!(fs::metadata(kinds.share().join("huge"))?.len() == size);
    Ok(())
}

/// Each sees at once what the other does, and bytes appended by both stay whole.
fn two_pods() -> anyhow::Result<()> {
    let daemon = open_daemon()?;
    let host = host_dir()?;
    let mount = json!({"volumeMounts": [{"name": "h", "mountPath": "/h"}]});
    // They take turns: each goes on when it sees the other's last step.
    let script = |own: &str, other: &str, begins: bool| {
        let wait = format!("until test \"$(cat /h/{other})\" = $n; do :; done; ");
        let write = format!("echo $n >/h/{own}.new; mv /h/{own}.new /h/{own}; ");
        let turn = if begins { write + &wait } else { wait + &write };
        format!(
            "echo 0 >/h/{own}; until test -e /h/{other}; do :; done; \
             for n in $(seq 20); do echo {own} $n >>/h/both; {turn} done"
        )
    };
    let mut pods = Vec::new();
    for (name, script) in [
        ("a", script("a", "b", true)),
        ("b", script("b", "a", false)),
    ] {
        let c = container("c", &script, mount.clone());
        let spec = json!({"volumes": [host_path("h", host.path())]});
        let manifest = pod(&format!("shared-{name}"), &[c], spec);
        daemon.run_detached(&manifest)?;
        pods.push(format!("shared-{name}"));
    }
    for name in &pods {
        daemon.wait_for(name, "over", |pod| pod["phase"] == "PHASE_SUCCEEDED")?;
    }
    let both = fs::read_to_string(host.path().join("both"))?;
    let mut lines: Vec<&str> = both.lines().collect();
    lines.sort_unstable();
    let mut wanted: Vec<String> = (1..=20)
        .flat_map(|n| [format!("a {n}"), format!("b {n}")])
        .collect();
    wanted.sort_unstable();
    ensure!(lines == wanted, "{both}");
    Ok(())
}

/// Bytes that the scratch disk of a pod takes of the host's disk.
fn scratch_bytes(daemon: &Daemon, id: &str) -> anyhow::Result<u64> {
    let path = daemon.root().join("pods").join(id).join("scratch.img");
    let meta = fs::metadata(&path).with_context(|| path.display().to_string())?;
    Ok(meta.blocks() * 512)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds()? {
        ensure!(started.elapsed() < PATIENCE, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn exec(daemon: &Daemon, pod: &str, script: &str) -> anyhow::Result<Ran> {
    daemon.cli(["exec", pod, "--", "sh", "-c", script])
}

fn discard() -> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let daemon = shared::daemon()?;
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let c = container("c", "sleep 100000", mount);
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let id = daemon.run_detached(&pod("discard", &[c], spec))?;
    daemon.wait_for(&id, "running", |p| {
        p["containers"][0]["state"] == "STATE_RUNNING"
    })?;
    let before = scratch_bytes(&daemon, &id)?;
    ensure!(before < 16 * MIB, "an empty disk takes {before} bytes");
    // In a volume and in the container's own root.
    let write = "dd if=/dev/zero of=/v/big bs=1M count=32 2>/dev/null && \
        dd if=/dev/zero of=/big bs=1M count=32 2>/dev/null && sync /v/big && sync";
    exec(&daemon, &id, write)?.ok()?;
    wait_until("the bytes are not written", || {
        Ok(scratch_bytes(&daemon, &id)? >= before + 64 * MIB)
    })?;
    exec(&daemon, &id, "rm /v/big /big && sync")?.ok()?;
    wait_until("the room is not given back", || {
        Ok(scratch_bytes(&daemon, &id)? < before + 16 * MIB)
    })?;
    let dir = daemon.root().join("pods").join(&id);
    daemon.cli(["stop", &id])?.ok()?;
    ensure!(
        !dir.join("scratch.img").exists(),
        "the disk outlives its VM"
    );
    daemon.cli(["rm", &id])?.ok()?;
    Ok(())
}

fn limits() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let limit = |amount: &str| json!({"limits": {"ephemeral-storage": amount}});
    let with = |amount| json!({"resources": limit(amount), "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let fill = |file: &str, mib: u32| {
        format!(
            "dd if=/dev/zero of={file} bs=1M count={mib} 2>&1 | grep -o -e 'No space left' -e 'quota exceeded'"
        )
    };
    // Its own limit is met while the disk has room, which the other one uses, until
    // that is full, too; what is deleted can be used again.
    let small = format!(
        "{}; touch /v/met; until test -e /v/full; do sleep 0.1; done; rm -f /small; echo again >/small && cat /small",
        fill("/small", 16)
    );
    let large = format!(
        "until test -e /v/met; do sleep 0.1; done; \
         dd if=/dev/zero of=/large bs=1M count=16 2>/dev/null && echo fits; \
         {}; rm /v/rest; echo x >/v/full",
        fill("/v/rest", 64)
    );
    let containers = [
        container("small", &small, with("8Mi")),
        container("large", &large, with("24Mi")),
    ];
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let out = daemon.run(&pod("ephemeral", &containers, spec))?.ok()?;
    let of = |name: &str| {
        let start = format!("[{name}] ");
        let lines = out.lines().filter_map(|line| line.strip_prefix(&start));
        lines.collect::<Vec<_>>()
    };
    ensure!(of("small") == ["quota exceeded", "again"], "{out}");
    ensure!(of("large") == ["fits", "No space left"], "{out}");
    let refused = |amount: &str| {
        let c = container("c", "true", json!({"resources": limit(amount)}));
        daemon.run(&pod("ephemeral-refused", &[c], json!({})))
    };
    let path = "spec.containers[0].resources.limits.ephemeral-storage";
    refused("-1")?.refused(&[path, "negative"])?;
    refused("1Ei")?.refused(&[path, "at most"])?;
    Ok(())
}

/// A pod goes on writing while another one's disk is full.
fn full_for_one() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "resources": {"limits": {"ephemeral-storage": "24Mi"}}});
    let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let count = "n=0; while :; do n=$((n + 1)); \
        { echo $n >/v/new && sync /v/new && mv /v/new /v/n; } || echo failed; done";
    let writes = container("c", count, mount.clone());
    daemon.run_detached(&pod("writes", &[writes], spec.clone()))?;
    daemon.wait_for("writes", "running", |pod| {
        pod["containers"][0]["state"] == "STATE_RUNNING"
    })?;
    let fill =
        "dd if=/dev/zero of=/v/rest bs=64k 2>&1 | grep -o 'No space left'; exec sleep 100000";
    daemon.run_detached(&pod("full", &[container("c", fill, mount)], spec))?;
    daemon.wait_for_output("full", "No space left")?;
    let counted = || -> anyhow::Result<u64> {
        let out = exec(&daemon, "writes", "cat /v/n || echo 0")?.ok()?;
        Ok(out.trim().parse()?)
    };
    let before = counted()?;
    wait_until(
        "the other pod stands still",
        || Ok(counted()? > before + 20),
    )?;
    let more = "dd if=/dev/zero of=/v/more bs=64k count=64 2>&1";
    let ran = exec(&daemon, "full", more)?;
    ensure!(ran.stdout.contains("No space left"), "{ran}");
    ensure!(daemon.cli(["logs", "writes"])?.ok()?.is_empty());
    // As much as it may have, and no less for the other one's sake.
    let fits = "dd if=/dev/zero of=/v/more bs=1M count=16 2>/dev/null && sync /v/more";
    exec(&daemon, "writes", fits)?.ok()?;
    // What is deleted can be used again.
    let again = "rm /v/rest /v/more && echo again >/v/again && sync /v/again";
    exec(&daemon, "full", again)?.ok()?;
    for name in ["writes", "full"] {
        daemon.cli(["rm", "--force", name])?.ok()?;
    }
    Ok(())
}
