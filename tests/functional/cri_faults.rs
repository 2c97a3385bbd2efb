//! The CRI: VMs that die, callers that go away.

use crate::Test;
use crate::lifecycle::processes_naming;
use anyhow::{Context, ensure};
use cri_api::v1::{self, ContainerEventType, ContainerState, PodSandboxState};
use rustix::process::{Signal, kill_process};
use spherule_tests::Daemon;
use spherule_tests::cri::{Cri, container_config, refused, sandbox_config};
use std::time::{Duration, Instant};
use tonic::{Code, Request, Status};

pub(crate) const TESTS: &[Test] = &[
    ("a_vm_that_dies_ends_its_calls_and_is_told", vm_dies),
    (
        "a_vmm_that_hangs_at_a_start_holds_up_its_own_calls_only",
        vmm_hangs,
    ),
    ("calls_that_nobody_waits_for_leave_nothing", given_up),
];

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(180);

/// Looks again and again until it is so.
fn wait_until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether `sleep` with that argument runs in a container.
fn sleeps(cri: &Cri, container: &str, seconds: &str) -> anyhow::Result<bool> {
    let script = format!(
        "for p in /proc/[0-9]*; do \
         test \"$(tr '\\0' ' ' < $p/cmdline)\" = 'sleep {seconds} ' && exit 0; \
         done 2>/dev/null; exit 1"
    );
    let found = cri.exec(container, &["sh", "-c", &script])?;
    Ok(found.exit_code == 0)
}

fn exec_request(container: &str, command: &[&str]) -> v1::ExecSyncRequest {
    v1::ExecSyncRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        timeout: 0,
    }
}

/// The directories and processes of the daemon's pods.
fn nothing_left(daemon: &Daemon) -> anyhow::Result<bool> {
    let mut left = processes_naming(daemon)?.len();
    for dir in [daemon.root().join("pods"), daemon.run_dir().join("pods")] {
        left += std::fs::read_dir(dir)?.count();
    }
    Ok(left == 0)
}

fn vm_dies() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let cri = Cri::connect(&daemon)?;
    let events = cri.runtime.clone();
    let mut events = cri.wait(async move {
        let mut client = events;
        client.get_container_events(v1::GetEventsRequest {}).await
    })?;
    let config = sandbox_config("cri-dies", daemon.dir());
    let pod = cri.run(&config)?;
    // Does not end at SIGTERM.
    let script = "trap '' TERM; while :; do sleep 1; done";
    let container = cri.create(&pod, container_config("c", script), &config)?;
    cri.start(&container)?;

    let socket = daemon.run_dir().join("cri.sock");
    let call = |work: fn(&Cri, String) -> Result<(), Status>| {
        let (socket, container) = (socket.clone(), container.clone());
        std::thread::spawn(move || {
            let cri = Cri::at(&socket).map_err(|e| Status::unknown(e.to_string()))?;
            work(&cri, container)
        })
    };
    let exec = call(|cri, container| {
        let request = exec_request(&container, &["sleep", "31337"]);
        cri.wait(cri.runtime.clone().exec_sync(request)).map(drop)
    });
    wait_until("the command runs", || sleeps(&cri, &container, "31337"))?;
    let stop = call(|cri, container| cri.stop(&container, 100_000));

    kill_process(cri.vmm(&pod)?, Signal::KILL)?;

    let told = exec.join().expect("no panic");
    refused(told, Code::Unavailable, &[&pod, "virtual machine", "ended"])?;
    // What was to be stopped has stopped.
    stop.join().expect("no panic")?;
    let ended = cri.ended(&container)?;
    ensure!(
        (ended.exit_code, ended.reason.as_str()) == (137, "SandboxLost")
            && ended.message.contains("virtual machine"),
        "{ended:?}"
    );
    wait_until("the sandbox is not ready", || {
        Ok(cri.sandbox(&pod)?.state() == PodSandboxState::SandboxNotready)
    })?;
    for answer in [
        cri.exec(&container, &["true"]).map(drop),
        cri.create(&pod, container_config("d", "true"), &config)
            .map(drop),
    ] {
        let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
        ensure!(
            matches!(code, Code::Unavailable | Code::FailedPrecondition),
            "{answer:?}"
        );
    }
    let stopped = ContainerEventType::ContainerStoppedEvent;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let next = async { events.message().await.map(tonic::Response::new) };
        let event = cri.wait(next)?.context("the stream ended")?;
        if event.container_event_type() == stopped {
            let states = event.containers_statuses.iter();
            ensure!(
                states
                    .filter(|status| status.id == container)
                    .all(|status| status.state() == ContainerState::ContainerExited),
                "{event:?}"
            );
            seen.push(event.container_id);
        }
    }
    ensure!(seen == [container.clone(), pod.clone()], "{seen:?}");
    cri.remove_pod(&pod)?;
    ensure!(nothing_left(&daemon)?);
    Ok(())
}

fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// The answer of a call, made again as long as what was given up has the name.
fn once_free<T>(mut call: impl FnMut() -> Result<T, Status>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call() {
            Err(status) if status.code() == Code::AlreadyExists && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            answer => return Ok(answer?),
        }
    }
}

fn vmm_hangs() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let cri = Cri::connect(&daemon)?;
    let make = |name: &str| {
        let config = sandbox_config(name, daemon.dir());
        let pod = cri.run(&config)?;
        let container = cri.create(&pod, container_config("c", "sleep 100000"), &config)?;
        cri.start(&container)?;
        anyhow::Ok((pod, container))
    };
    let (pod, container) = make("cri-hangs")?;
    let (_, other) = make("cri-beside")?;
    let vmm = cri.vmm(&pod)?;

    // It is there again before anybody would give it up.
    kill_process(vmm, Signal::STOP)?;
    daemon.kill()?;
    daemon.restart()?;
    let cri = Cri::connect(&daemon)?;
    ensure!(cri.sandbox(&pod)?.state() == PodSandboxState::SandboxReady);
    ensure!(cri.container(&container)?.state() == ContainerState::ContainerRunning);
    ensure!(cri.exec(&other, &["true"])?.exit_code == 0);
    let socket = daemon.run_dir().join("cri.sock");
    let of = container.clone();
    let exec = std::thread::spawn(move || anyhow::Ok(Cri::at(&socket)?.exec(&of, &["true"])?));
    kill_process(vmm, Signal::CONT)?;
    ensure!(exec.join().expect("no panic")?.exit_code == 0);
    ensure!(cri.vmm(&pod)? == vmm, "another VM");

    // It never comes again.
    kill_process(vmm, Signal::STOP)?;
    daemon.kill()?;
    daemon.restart()?;
    let cri = Cri::connect(&daemon)?;
    let words = ["virtual machine", pod.as_str()];
    refused(cri.exec(&container, &["true"]), Code::Unavailable, &words)?;
    wait_until("the sandbox is not ready", || {
        Ok(cri.sandbox(&pod)?.state() == PodSandboxState::SandboxNotready)
    })?;
    let ended = cri.container(&container)?;
    ensure!(
        ended.reason == "SandboxLost" && ended.message.contains("did not answer"),
        "{ended:?}"
    );
    ensure!(cri.exec(&other, &["true"])?.exit_code == 0);
    let request = v1::ListPodSandboxRequest::default();
    for sandbox in cri
        .wait(cri.runtime.clone().list_pod_sandbox(request))?
        .items
    {
        cri.remove_pod(&sandbox.id)?;
    }
    ensure!(nothing_left(&daemon)?);
    Ok(())
}

fn given_up() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let cri = Cri::connect(&daemon)?;
    // At several moments of its making; on a quick machine the last is there in time.
    for limit_ms in [1, 50, 200, 600] {
        let config = sandbox_config(&format!("cri-late-{limit_ms}"), daemon.dir());
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            ..v1::RunPodSandboxRequest::default()
        };
        let mut runtime = cri.runtime.clone();
        let request = within(request, Duration::from_millis(limit_ms));
        match cri.wait(runtime.run_pod_sandbox(request)) {
            Ok(made) => cri.remove_pod(&made.pod_sandbox_id)?,
            Err(status) => ensure!(
                matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
                "{status:?}"
            ),
        }
    }
    wait_until("nothing is left of the sandboxes", || nothing_left(&daemon))?;
    let list = v1::ListPodSandboxRequest::default();
    let list = cri.wait(cri.runtime.clone().list_pod_sandbox(list))?;
    ensure!(list.items.is_empty(), "{list:?}");

    let config = sandbox_config("cri-late-1", daemon.dir());
    let pod = cri.run(&config)?;
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(container_config("c", "sleep 1000")),
        sandbox_config: Some(config.clone()),
    };
    let mut runtime = cri.runtime.clone();
    let late = cri.wait(runtime.create_container(within(request, Duration::from_millis(1))));
    ensure!(late.is_err(), "{late:?}");
    let container = once_free(|| cri.create(&pod, container_config("c", "sleep 1000"), &config))?;
    cri.start(&container)?;
    let list = v1::ListContainersRequest::default();
    let list = cri.wait(cri.runtime.clone().list_containers(list))?;
    ensure!(list.containers.len() == 1, "{list:?}");

    // Long enough for it to start, most often; in any case it does not go on.
    let request = exec_request(&container, &["sleep", "4242"]);
    let mut runtime = cri.runtime.clone();
    let late = cri.wait(runtime.exec_sync(within(request, Duration::from_millis(700))));
    ensure!(late.is_err(), "{late:?}");
    wait_until("the command has ended", || {
        Ok(!sleeps(&cri, &container, "4242")?)
    })?;
    cri.remove_pod(&pod)?;
    ensure!(nothing_left(&daemon)?);
    Ok(())
}
