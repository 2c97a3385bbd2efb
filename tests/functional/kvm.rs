//! The kvm engine wherever /dev/kvm opens, hardware virtualization or not. One
//! VM carries several checks: without it, a boot takes many seconds.

use crate::block_volumes::{claim, volume};
use crate::every_kind::{left_in, on_ext4};
use crate::inside::{INSIDE, checksum, program_files};
use crate::sessions::ports_of;
use crate::{Test, guest_faults};
use anyhow::ensure;
use serde_json::json;
use spherule_tests::manifest::{container, documents, pod};
use spherule_tests::{Daemon, DaemonOptions, Host, PEER_IMAGE, checkout, import_peer, machine};
use std::fs::{self, File};
use std::sync::Arc;

pub(crate) const TESTS: &[Test] = &[
    ("hello_says_hello_and_ends_well", hello),
    ("kernel_that_only_spins_fails_the_pod", spinning_kernel),
    ("two_vcpus_blocks_vsock_and_exit_code", one_pod),
    ("a_share_a_volume_and_a_forwarded_port_work", storage),
];

pub(crate) const NETWORK: &[Test] = &[("two_vcpus_have_two_queue_pairs", queue_pairs)];

pub(crate) const WITH_QEMU: &[Test] = &[("both_engines_give_the_same_output", same_output)];

fn daemon() -> anyhow::Result<Daemon> {
    daemon_on(None)
}

fn daemon_on(host: Option<Arc<Host>>) -> anyhow::Result<Daemon> {
    daemon_with(host, &[])
}

fn daemon_with(host: Option<Arc<Host>>, more: &[&str]) -> anyhow::Result<Daemon> {
    // An emulated guest on a busy machine needs more than the default's two minutes.
    let args = ["--agent-timeout", "500s"].iter().chain(more);
    Daemon::with(DaemonOptions {
        engine: "kvm".into(),
        host,
        args: args.map(ToString::to_string).collect(),
        ..DaemonOptions::default()
    })
}

fn hello() -> anyhow::Result<()> {
    let manifest = std::fs::read_to_string(checkout().join("tests/pods/hello.yaml"))?;
    let daemon = daemon()?;
    let out = daemon.run(&manifest)?.ok()?;
    ensure!(
        out.contains("[hello] hello from hello, kernel 6.12"),
        "{out}"
    );
    ensure!(daemon.inspect("hello")?["engine"] == "ENGINE_KVM");
    Ok(())
}

/// Two vCPUs are there; the image's largest file, read through the block device,
/// has the host's checksum; a MiB (ten, where the engine is fast) goes through the
/// vsock unharmed; the exit code arrives.
fn one_pod() -> anyhow::Result<()> {
    let mib = if machine().kvm_is_fast { 10 } else { 1 };
    let script = format!(
        "nproc; sha256sum /bin/busybox; dd if=/bin/busybox bs=64k count={} 2>/dev/null | base64 -w 0; exit 9",
        mib * 16
    );
    let extra = json!({"resources": {"limits": {"cpu": "2", "memory": "128Mi"}}});
    let daemon = daemon()?;
    let out = daemon
        .run(&pod("kvm", &[container("c", &script, extra)], json!({})))?
        .code(9)?;
    let lines: Vec<&str> = out.lines().map(|l| l.trim_start_matches("[c] ")).collect();
    ensure!(
        lines.len() == 3 && lines[0] == "2",
        "{} lines, nproc {:?}",
        lines.len(),
        lines.first()
    );
    let sum = std::process::Command::new("sha256sum")
        .arg(test_images::BUSYBOX)
        .output()?;
    let host = String::from_utf8_lossy(&sum.stdout);
    ensure!(
        lines[1].get(..64) == host.get(..64),
        "guest {} host {host}",
        lines[1]
    );
    Ok(())
}

/// A directory of the host and a claim are read, written and mapped, and the host
/// finds there what the guest had; a port of the pod is reached.
fn storage() -> anyhow::Result<()> {
    let rounds = if machine().kvm_is_fast { 600 } else { 40 };
    let daemon = daemon_with(None, &["--allow-host-path", "/"])?;
    let host = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
    let (share, disk) = (host.path().join("share"), host.path().join("data.img"));
    fs::create_dir(&share)?;
    fs::write(share.join("hello"), "from the host\n")?;
    File::create(&disk)?.set_len(64 << 20)?;
    let ext4 = json!({"fsType": "ext4"});
    let objects = [
        volume("data", &disk, "Filesystem", ext4, json!({})),
        claim("data", "Filesystem"),
    ];
    daemon.apply(&documents(&objects))?.ok()?;
    let mut volumes = vec![
        json!({"name": "share", "hostPath": {"path": share}}),
        json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}}),
    ];
    let mut mounts = vec![
        json!({"name": "share", "mountPath": "/share"}),
        json!({"name": "data", "mountPath": "/data"}),
    ];
    for (number, (path, place)) in program_files()?.into_iter().enumerate() {
        let name = format!("program-{number}");
        volumes.push(json!({"name": name, "hostPath": {"path": path}}));
        mounts.push(json!({"name": name, "mountPath": place, "readOnly": true}));
    }
    let script = format!(
        "cat /share/hello && /t/test {INSIDE} fsx {rounds} 1 /share /data 2>&1 && echo done && \
         exec nc -ll -p 7 -e md5sum"
    );
    let c = container("c", &script, json!({"volumeMounts": mounts}));
    daemon.run_detached(&pod("kvm-storage", &[c], json!({"volumes": volumes})))?;
    let told = daemon.wait_for("kvm-storage", "done or over", |pod| {
        let logs = daemon.cli(["logs", "kvm-storage"]);
        let said = |ran: spherule_tests::Ran| ran.stdout.contains("done\n");
        pod["phase"] == "PHASE_FAILED" || logs.is_ok_and(said)
    })?;
    let out = daemon.cli(["logs", "kvm-storage"])?.stdout;
    ensure!(told["phase"] == "PHASE_RUNNING", "{out}\n{told:#}");
    ensure!(told["engine"] == "ENGINE_KVM", "{told:#}");
    ports_of(&daemon, "kvm-storage")?;
    daemon.cli(["rm", "--force", "kvm-storage"])?.ok()?;
    ensure!(out.starts_with("from the host\n"), "{out}");
    for (place, found) in [
        ("/share", left_in(&share)?),
        ("/data", on_ext4(&disk, "/fsx")?),
    ] {
        let line = format!("{place}: {rounds} operations, {:016x}", checksum(&found));
        ensure!(out.contains(&line), "{line}:\n{out}");
    }
    Ok(())
}

/// A pod with a network uses a pair of queues on each of its vCPUs, and speaks with
/// its host by both families.
fn queue_pairs() -> anyhow::Result<()> {
    let host = Arc::new(Host::with_network()?);
    let daemon = daemon_on(Some(Arc::clone(&host)))?;
    import_peer(&daemon)?;
    host.serve(None, 7000)?;
    let bytes = if machine().kvm_is_fast {
        10 << 20
    } else {
        20_000
    };
    let script = format!(
        "echo $(nproc) $(ls /sys/class/net/eth0/queues); \
         peer send 10.88.0.1:7000 {bytes}; peer datagrams [fd88:5f3e::1]:7000 1400"
    );
    let extra = json!({
        "image": PEER_IMAGE,
        "resources": {"limits": {"cpu": "2", "memory": "128Mi"}},
    });
    let pod = pod("queues", &[container("c", &script, extra)], json!({}));
    let out = daemon.run(&pod)?.ok()?;
    ensure!(out.starts_with("[c] 2 rx-0 rx-1 tx-0 tx-1\n"), "{out}");
    ensure!(out.contains(&format!("[c] {bytes} ")), "{out}");
    Ok(())
}

fn same_output() -> anyhow::Result<()> {
    let manifest = std::fs::read_to_string(checkout().join("tests/pods/hello.yaml"))?;
    let daemon = daemon()?;
    let mut outputs = Vec::new();
    for (engine, name) in [("kvm", "ENGINE_KVM"), ("qemu", "ENGINE_QEMU")] {
        outputs.push(daemon.run_with(&manifest, &["--engine", engine])?.ok()?);
        let pod = daemon.inspect("hello")?;
        ensure!(pod["engine"] == name, "{pod:#}");
        daemon.cli(["rm", "hello"])?.ok()?;
    }
    ensure!(outputs[0].starts_with("[hello] hello from"), "{outputs:?}");
    ensure!(outputs[0] == outputs[1], "{outputs:?}");
    Ok(())
}

fn spinning_kernel() -> anyhow::Result<()> {
    guest_faults::spinning_kernel_on("kvm")
}
