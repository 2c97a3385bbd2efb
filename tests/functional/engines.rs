//! Machines that lack an engine, or both: /dev/kvm is hidden by a /dev of the
//! daemon's own, QEMU by its PATH.

use crate::Test;
use crate::lifecycle::processes_naming;
use anyhow::{Context, ensure};
use serde_json::json;
use spherule_tests::manifest::one;
use spherule_tests::{Daemon, DaemonOptions};

pub(crate) const NONE: &[Test] = &[(
    "daemon_without_kvm_and_qemu_is_refused_with_the_remedy",
    none,
)];
pub(crate) const ONLY_KVM: &[Test] = &[("without_qemu_auto_is_kvm_and_says_why", only_kvm)];
pub(crate) const ONLY_QEMU: &[Test] = &[("without_kvm_auto_is_qemu_and_says_why", only_qemu)];

/// A /dev of its own with the usual devices, but no kvm.
const HIDE_KVM: &str = "mkdir $d/dev; mount -t tmpfs tmpfs $d/dev; \
    for n in null zero full random urandom tty; do \
        : > $d/dev/$n; mount --bind /dev/$n $d/dev/$n; done; \
    mount --move $d/dev /dev";
/// A PATH with nothing on it but what makes scratch disks.
const HIDE_QEMU: &str = "mkdir $d/bin; \
    ln -s $(PATH=$PATH:/usr/sbin:/sbin; command -v mkfs.ext4) $d/bin/mkfs.ext4; \
    export PATH=$d/bin";

fn hiding(engine: &str, what: &[&str]) -> DaemonOptions {
    DaemonOptions {
        engine: engine.into(),
        prepare: Some(what.join("; ")),
        ..DaemonOptions::default()
    }
}

fn none() -> anyhow::Result<()> {
    let cases: [(&str, &[&str]); 3] = [
        (
            "auto",
            &["no engine can run", "no /dev/kvm", "apt-get install qemu"],
        ),
        ("kvm", &["--engine kvm", "no /dev/kvm", "module kvm"]),
        ("qemu", &["--engine qemu", "apt-get install qemu"]),
    ];
    for (engine, words) in cases {
        let refused = Daemon::with(hiding(engine, &[HIDE_KVM, HIDE_QEMU]));
        let error = refused.err().context("it started")?.to_string();
        for word in words {
            ensure!(error.contains(word), "no {word:?} in {error}");
        }
    }
    Ok(())
}

/// The daemon runs pods on one engine and refuses the other by name and remedy.
fn only(daemon: &Daemon, engine: &str, lacking: &str, why: &str) -> anyhow::Result<()> {
    let info = daemon.cli(["info", "--output", "json"])?.json()?;
    let name = format!("ENGINE_{}", engine.to_uppercase());
    ensure!(info["engine"] == name.as_str(), "{info:#}");
    let reason = info["engineReason"].as_str().context("engineReason")?;
    ensure!(
        reason.starts_with("auto: ") && reason.contains(why),
        "{reason}"
    );
    let shown = daemon.cli(["info"])?.ok()?;
    ensure!(
        shown.contains(why) && shown.contains("not usable"),
        "{shown}"
    );

    let manifest = one("engine", "echo up", json!({}));
    let refused = daemon.run_with(&manifest, &["--engine", lacking])?;
    refused.refused(&[lacking, "cannot run on this machine", why])?;
    daemon.cli(["inspect", "engine"])?.refused(&["engine"])?;
    ensure!(daemon.run(&manifest)?.ok()? == "[c] up\n");
    let pod = daemon.inspect("engine")?;
    ensure!(pod["engine"] == name.as_str(), "{pod:#}");
    daemon.cli(["rm", "engine"])?.ok()?;
    let left = processes_naming(daemon)?;
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

fn only_kvm() -> anyhow::Result<()> {
    let mut options = hiding("auto", &[HIDE_QEMU]);
    options.args = vec!["--agent-timeout".into(), "500s".into()];
    let daemon = Daemon::with(options)?;
    // Where KVM is native, QEMU is not missed and not spoken of in the reason.
    if spherule_tests::machine().kvm_is_fast {
        let info = daemon.cli(["info"])?.ok()?;
        ensure!(info.contains("native speed"), "{info}");
        return Ok(());
    }
    only(&daemon, "kvm", "qemu", "apt-get install qemu")
}

fn only_qemu() -> anyhow::Result<()> {
    let daemon = Daemon::with(hiding("auto", &[HIDE_KVM]))?;
    only(&daemon, "qemu", "kvm", "no /dev/kvm")
}
