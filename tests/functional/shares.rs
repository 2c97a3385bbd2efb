//! Directories and files of the host, as a kubelet gives them to containers.

use crate::Test;
use crate::inside::{INSIDE, program_files};
use anyhow::ensure;
use cri_api::v1;
use spherule_tests::cri::{Cri, container_config, refused, sandbox_config};
use spherule_tests::{Daemon, DaemonOptions};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    ("mounts_work_and_outlive_the_daemon", restart),
    ("what_cannot_be_shared_is_refused", refusals),
    ("locks_direct_io_attributes_and_watches_work", system_calls),
];

/// Where mounts can be made for a daemon.
pub(crate) const MOUNTS: &[Test] = &[(
    "read_only_and_new_mounts_reach_as_far_as_asked",
    mounts_beneath,
)];

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(240);

fn mount(host: &Path, container: &str, readonly: bool) -> v1::Mount {
    v1::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly,
        ..v1::Mount::default()
    }
}

fn config(name: &str, mounts: Vec<v1::Mount>) -> v1::ContainerConfig {
    v1::ContainerConfig {
        mounts,
        ..container_config(name, "sleep 100000")
    }
}

/// What a script in a container writes; it must succeed.
fn out(cri: &Cri, container: &str, script: &str) -> anyhow::Result<String> {
    let done = cri.exec(container, &["sh", "-c", script])?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure!(done.exit_code == 0, "{script}: {stderr}");
    Ok(String::from_utf8(done.stdout)?)
}

fn restart() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let host = tempfile::tempdir()?;
    let volume = host.path().join("volume");
    fs::create_dir_all(volume.join("..v1"))?;
    fs::write(volume.join("..v1/key"), "one\n")?;
    symlink("..v1", volume.join("..data"))?;
    symlink("..data/key", volume.join("key"))?;
    let (hosts, log) = (host.path().join("hosts"), host.path().join("termination"));
    fs::write(&hosts, "10.0.0.1 other\n")?;
    fs::write(&log, "")?;
    let logs = tempfile::tempdir()?;
    let sandbox = sandbox_config("shares", logs.path());
    let cri = Cri::connect(&daemon)?;
    let pod = cri.run(&sandbox)?;
    let missing = host.path().join("made");
    let first = config(
        "first",
        vec![
            mount(&volume, "/etc/config", true),
            mount(&hosts, "/etc/hosts", false),
            mount(&log, "/dev/termination-log", false),
            mount(&missing, "/made", false),
        ],
    );
    let first = cri.create(&pod, first, &sandbox)?;
    cri.start(&first)?;
    ensure!(missing.is_dir());
    let script = "cat /etc/config/key /etc/hosts && echo over >/dev/termination-log";
    ensure!(out(&cri, &first, script)? == "one\n10.0.0.1 other\n");
    ensure!(fs::read_to_string(&log)? == "over\n");

    daemon.kill()?;
    // Swapped, as a kubelet does, while nobody looks.
    fs::create_dir(volume.join("..v2"))?;
    fs::write(volume.join("..v2/key"), "two\n")?;
    symlink("..v2", volume.join("..tmp"))?;
    fs::rename(volume.join("..tmp"), volume.join("..data"))?;
    fs::remove_dir_all(volume.join("..v1"))?;
    daemon.restart()?;

    let cri = Cri::connect(&daemon)?;
    ensure!(out(&cri, &first, "cat /etc/config/key")? == "two\n");
    // The same directory for another container, which may write into it.
    let second = config("second", vec![mount(&volume, "/v", false)]);
    let second = cri.create(&pod, second, &sandbox)?;
    cri.start(&second)?;
    out(&cri, &second, "echo new >/v/added")?;
    ensure!(out(&cri, &first, "cat /etc/config/added")? == "new\n");
    let write = cri.exec(&first, &["sh", "-c", "echo x >/etc/config/added"])?;
    ensure!(write.exit_code != 0, "a read-only mount was written");
    // The container that is left keeps it.
    cri.stop(&second, 0)?;
    cri.remove(&second)?;
    ensure!(out(&cri, &first, "cat /etc/config/key")? == "two\n");
    cri.remove_pod(&pod)?;
    Ok(())
}

fn refusals() -> anyhow::Result<()> {
    let cri = Cri::connect(&*crate::shared::daemon()?)?;
    let host = tempfile::tempdir()?;
    let socket = host.path().join("s");
    let _listener = UnixListener::bind(&socket)?;
    let logs = tempfile::tempdir()?;
    let sandbox = sandbox_config("shares-refused", logs.path());
    let pod = cri.run(&sandbox)?;
    let made = cri.create(
        &pod,
        config("c", vec![mount(&socket, "/s", false)]),
        &sandbox,
    );
    let answer = refused(made, Code::InvalidArgument, &["a socket"]);
    cri.remove_pod(&pod)?;
    answer
}

/// Mounts of the host beneath what is shared, there from the start and later.
fn mounts_beneath() -> anyhow::Result<()> {
    let daemon = Daemon::with(DaemonOptions {
        prepare: Some("mkdir -p $d/v/old $d/v/new; mount -t tmpfs old $d/v/old".into()),
        ..DaemonOptions::default()
    })?;
    let volume = daemon.dir().join("v");
    let logs = tempfile::tempdir()?;
    let sandbox = sandbox_config("beneath", logs.path());
    let cri = Cri::connect(&daemon)?;
    let pod = cri.run(&sandbox)?;
    let with = |container: &str, readonly, recursive_read_only, live| v1::Mount {
        recursive_read_only,
        propagation: if live {
            v1::MountPropagation::PropagationHostToContainer.into()
        } else {
            v1::MountPropagation::PropagationPrivate.into()
        },
        ..mount(&volume, container, readonly)
    };
    let mounts = vec![
        with("/rw", false, false, false),
        with("/ro", true, false, false),
        with("/rro", true, true, false),
        with("/live", false, false, true),
        with("/ro-live", true, false, true),
    ];
    let container = cri.create(&pod, config("c", mounts), &sandbox)?;
    cri.start(&container)?;
    let mut mount = Command::new("nsenter");
    mount.args([
        "-t",
        &daemon.pid().to_string(),
        "-m",
        "mount",
        "-t",
        "tmpfs",
    ]);
    ensure!(mount.arg("new").arg(volume.join("new")).status()?.success());

    let can_write = |dir: &str| {
        let script = ["sh", "-c", &format!("echo x >{dir}/f && rm {dir}/f")];
        Ok::<_, anyhow::Error>(cri.exec(&container, &script)?.exit_code == 0)
    };
    for (dir, writable) in [
        ("/rw", true),
        ("/rw/old", true),
        ("/ro", false),
        ("/ro/old", true),
        ("/ro/new", false),
        ("/rro", false),
        ("/rro/old", false),
        ("/live", true),
        ("/live/new", true),
        ("/ro-live", false),
        ("/ro-live/old", true),
        ("/ro-live/new", true),
    ] {
        ensure!(can_write(dir)? == writable, "{dir}: not {writable}");
    }
    out(
        &cri,
        &container,
        "echo new >/live/new/seen && echo old >/rw/new/seen",
    )?;
    let seen = "cat /rw/new/seen /ro/new/seen /ro-live/new/seen /live/new/seen";
    ensure!(out(&cri, &container, seen)? == "old\nold\nnew\nnew\n");
    cri.remove_pod(&pod)?;
    Ok(())
}

/// This program and its libraries, each a mount of one file.
fn this_program() -> anyhow::Result<Vec<v1::Mount>> {
    let files = program_files()?.into_iter();
    let mounts = files.map(|(path, place)| mount(&path, &place, true));
    Ok(mounts.collect())
}

/// Calls that need the guest's kernel and the host's end to agree, in one
/// container and between containers of a pod.
fn system_calls() -> anyhow::Result<()> {
    let cri = Cri::connect(&*crate::shared::daemon()?)?;
    // Not a tmpfs, which may lack what is tried here.
    let host = tempfile::tempdir_in(std::env::current_exe()?.with_file_name(""))?;
    let logs = tempfile::tempdir()?;
    let sandbox = sandbox_config("system-calls", logs.path());
    let pod = cri.run(&sandbox)?;
    let run = |name: &str, readonly, command: Option<&[&str]>| {
        let mut mounts = this_program()?;
        mounts.push(mount(host.path(), "/d", readonly));
        let mut config = config(name, mounts);
        if let Some(command) = command {
            config.command = command.iter().map(ToString::to_string).collect();
        }
        let id = cri.create(&pod, config, &sandbox)?;
        cri.start(&id)?;
        Ok::<_, anyhow::Error>(id)
    };
    run(
        "holder",
        false,
        Some(&["/t/test", INSIDE, "hold", "/d/lock"]),
    )?;
    let (writer, reader) = (run("writer", false, None)?, run("reader", true, None)?);
    let inside = |container: &str, what: &str, file: &str| {
        out(&cri, container, &format!("/t/test {INSIDE} {what} {file}"))
    };
    for what in ["direct", "attributes", "watch"] {
        inside(&writer, what, &format!("/d/{what}"))?;
    }
    ensure!(fs::metadata(host.path().join("direct"))?.len() == 8192);
    let mut value = [0; 16];
    let kept = host.path().join("attributes");
    let len = rustix::fs::getxattr(&kept, "user.kept", &mut value[..])?;
    ensure!(value[..len] == *b"kept");

    let started = Instant::now();
    while !host.path().join("lock.held").exists() {
        ensure!(started.elapsed() < PATIENCE, "the locks are not taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    inside(&writer, "try", "/d/lock")?;
    inside(&reader, "try", "/d/lock")?;
    cri.remove_pod(&pod)?;
    Ok(())
}
