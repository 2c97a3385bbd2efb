//! The daemon as a service of the node: installed from the Debian package, started by
//! a service manager.

use crate::Test;
use anyhow::{Context, ensure};
use serde_json::json;
use spherule_tests::manifest::one;
use spherule_tests::{Daemon, DaemonOptions, program};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[(
    "service_manager_hears_when_the_sockets_answer_and_of_the_end",
    notifies,
)];
pub(crate) const PACKAGE: &[Test] = &[("package_installs_all_that_a_node_needs", package)];

/// Longer than any daemon takes to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

fn hear(manager: &UnixDatagram) -> anyhow::Result<String> {
    let mut told = [0; 256];
    let len = manager.recv(&mut told).context("nothing was told")?;
    Ok(String::from_utf8(told[..len].to_vec())?)
}

fn notifies() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let manager = UnixDatagram::bind(dir.path().join("notify"))?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let socket = dir.path().join("cri.sock");
    let options = DaemonOptions {
        args: vec!["--listen".into(), socket.display().to_string()],
        environment: vec![("NOTIFY_SOCKET".into(), dir.path().join("notify"))],
        image: false,
        ..DaemonOptions::default()
    };
    let starts = std::thread::spawn(|| Daemon::with(options));
    ensure!(hear(&manager)? == "READY=1\n");
    UnixStream::connect(&socket).context("told too early")?;
    let mut daemon = starts.join().ok().context("the test died")??;
    daemon.terminate()?;
    ensure!(hear(&manager)? == "STOPPING=1\n");
    Ok(())
}

/// Mode, owner and path of the files that are there in any case.
const FILES: &[&str] = &[
    "-rw-r--r-- root/root ./etc/default/spherule",
    "drwxr-xr-x root/root ./etc/spherule/certs.d/",
    "-rwxr-xr-x root/root ./usr/bin/spherule",
    "-rwxr-xr-x root/root ./usr/bin/spherule-vmm",
    "-rw-r--r-- root/root ./usr/lib/spherule/initramfs.cpio",
    "-rw-r--r-- root/root ./usr/lib/spherule/vmlinux",
    "-rw-r--r-- root/root ./usr/lib/systemd/system/spherule.service",
    "-rw-r--r-- root/root ./usr/share/bash-completion/completions/spherule",
    "-rw-r--r-- root/root ./usr/share/doc/spherule/copyright",
    "-rw-r--r-- root/root ./usr/share/doc/spherule/guest-kernel/config/10-machine.config",
];

fn package() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let packed = output(
        Command::new(program("xtask"))
            .args(["package", "--as-built", "--output"])
            .arg(dir.path()),
    )?;
    let package = Path::new(packed.trim());
    let fields = output(Command::new("dpkg-deb").arg("--field").arg(package))?;
    for field in ["Package: spherule\n", "Architecture: amd64\n", "e2fsprogs"] {
        ensure!(fields.contains(field), "{fields}");
    }
    let listed = output(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    let listed: Vec<String> = listed.lines().map(without_size_and_time).collect();
    for file in FILES {
        ensure!(listed.iter().any(|l| l == file), "{file}: {listed:#?}");
    }
    for line in &listed {
        ensure!(line.contains(" root/root ."), "{line}");
    }

    let node = dir.path().join("node");
    output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&node),
    )?;
    let unit = std::fs::read_to_string(node.join("usr/lib/systemd/system/spherule.service"))?;
    for line in [
        "ExecStart=/usr/bin/spherule serve $SPHERULE_OPTIONS",
        "Type=notify",
        "KillMode=process",
    ] {
        ensure!(unit.lines().any(|l| l == line), "{line}: {unit}");
    }
    let daemon = Daemon::with(DaemonOptions {
        programs: Some(node.join("usr/bin")),
        guest: node.join("usr/lib/spherule"),
        ..DaemonOptions::default()
    })?;
    let out = daemon.run(&one("packaged", "echo from a package", json!({})))?;
    ensure!(out.ok()?.contains("from a package"));
    Ok(())
}

/// A line of tar's list.
fn without_size_and_time(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [mode, owner, _size, _date, _time, path @ ..] = &words[..] else {
        return line.to_owned();
    };
    [*mode, *owner, &path.join(" ")].join(" ")
}

/// What a program printed; an error where it failed.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(out.stdout)?)
}
