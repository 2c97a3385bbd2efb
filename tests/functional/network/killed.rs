//! kill -9 of the daemon while plugins work. What it leaves is gone after its next
//! start.

use super::{Net, PATIENCE, wait_for};
use anyhow::{Context, ensure};
use cri_api::v1;
use rustix::process::{Signal, kill_process};
use spherule_tests::Host;
use spherule_tests::cri::{Cri, refused};
use std::time::{Duration, Instant};
use tonic::Code;

/// A plugin of the list that marks where it is and waits there, for ever unless
/// `open` appears: before, or after the real one's work on a command.
fn waiting(host: &Host, plugin: &str, command: &str, after: bool) -> anyhow::Result<()> {
    let dir = host.dir().display();
    let wait = format!("touch {dir}/there; until test -e {dir}/open; do sleep 0.1; done");
    let real = format!("/usr/lib/cni/{plugin}");
    let (before, then) = if after {
        ("true", wait.as_str())
    } else {
        (wait.as_str(), "true")
    };
    host.write_plugin(
        plugin,
        &format!(
            r#"test "$CNI_COMMAND" = {command} || exec {real}
               cat > {dir}/input; {before}; {real} < {dir}/input > {dir}/output || exit 1
               {then}; cat {dir}/output"#
        ),
    )
}

/// The daemon is killed while a plugin waits; the next one finds the list whole.
fn killed_at(plugin: &str, command: &str, after: bool) -> anyhow::Result<()> {
    let mut net = Net::new()?;
    let before = net.remains()?;
    let there = net.host.dir().join("there");
    let stopped = match command {
        "DEL" => Some(net.cri.run(&net.config("stopped"))?),
        _ => None,
    };
    waiting(&net.host, plugin, command, after)?;
    let (socket, config) = (net.socket(), net.config("killed"));
    let id = stopped.clone();
    let call = std::thread::spawn(move || {
        let cri = Cri::at(&socket)?;
        match id {
            Some(id) => cri.stop_pod(&id)?,
            None => drop(cri.run(&config)?),
        }
        anyhow::Ok(())
    });
    wait_for(&there)?;
    net.daemon.kill()?;
    ensure!(call.join().expect("no panic").is_err(), "it was answered");
    std::fs::remove_file(net.host.dir().join("plugins").join(plugin))?;
    net.daemon.restart()?;
    net.wait_clean(&before)?;
    let cri = Cri::connect(&net.daemon)?;
    if let Some(id) = &stopped {
        cri.remove_pod(id)?;
    }
    // All is free again.
    let id = cri.run(&net.config("killed"))?;
    cri.remove_pod(&id)?;
    Ok(())
}

pub(super) fn during_add() -> anyhow::Result<()> {
    // The namespace is there, and nothing in it; then all but the later plugins' work.
    killed_at("bridge", "ADD", false)?;
    killed_at("bridge", "ADD", true)
}

pub(super) fn before_boot() -> anyhow::Result<()> {
    let mut net = Net::new()?;
    let before = net.remains()?;
    let there = net.host.dir().join("there");
    // The last of the list has done its work and ends.
    std::fs::write(net.host.dir().join("open"), "")?;
    waiting(&net.host, "bandwidth", "ADD", true)?;
    let (socket, config) = (net.socket(), net.config("killed"));
    let call = std::thread::spawn(move || anyhow::Ok(Cri::at(&socket)?.run(&config)?));
    wait_for(&there)?;
    std::thread::sleep(Duration::from_millis(100));
    net.daemon.kill()?;
    ensure!(call.join().expect("no panic").is_err(), "it was answered");
    net.daemon.restart()?;
    net.wait_clean(&before)
}

pub(super) fn during_del() -> anyhow::Result<()> {
    killed_at("bridge", "DEL", false)?;
    killed_at("bridge", "DEL", true)
}

/// A pod that runs is found with its addresses, goes on answering, and gives all of
/// it back.
pub(super) fn beside() -> anyhow::Result<()> {
    let mut net = Net::new()?;
    let before = net.remains()?;
    let id = net.cri.run(&net.config("stays"))?;
    let network = net.cri.sandbox(&id)?.network.context("no network")?;
    net.daemon.kill()?;
    let ping = format!("busybox ping -c 1 -W 10 {}", network.ip);
    net.host.sh(&ping)?;
    net.daemon.restart()?;
    net.cri = Cri::connect(&net.daemon)?;
    ensure!(net.cri.sandbox(&id)?.network.as_ref() == Some(&network));
    net.host.sh(&ping)?;
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: id.clone(),
    };
    let stats = net
        .cri
        .wait(net.cri.runtime.clone().pod_sandbox_stats(request))?;
    let usage = stats.stats.and_then(|stats| stats.linux?.network);
    ensure!(usage.is_some(), "no figures");
    net.cri.remove_pod(&id)?;
    net.ensure_clean(&before)
}

/// A plugin hangs on DEL for what the killed daemon left: the next one serves, makes
/// pods and says the truth of the old one meanwhile; the rest goes once it can.
pub(super) fn hanging_del() -> anyhow::Result<()> {
    // Who waited for the plugin would wait longer than the test does.
    let mut net = Net::on(Host::with_network()?, &["--cni-timeout", "1h"])?;
    let before = net.remains()?;
    let gone = net.cri.run(&net.config("gone"))?;
    waiting(&net.host, "bridge", "DEL", false)?;
    let there = net.host.dir().join("there");
    let (socket, id) = (net.socket(), gone.clone());
    let call = std::thread::spawn(move || anyhow::Ok(Cri::at(&socket)?.stop_pod(&id)?));
    wait_for(&there)?;
    net.daemon.kill()?;
    ensure!(call.join().expect("no panic").is_err(), "it was answered");
    std::fs::remove_file(&there)?;
    net.daemon.restart()?;
    wait_for(&there)?;
    net.cri = Cri::connect(&net.daemon)?;
    let state = net.cri.sandbox(&gone)?.state();
    ensure!(state == v1::PodSandboxState::SandboxNotready, "{state:?}");
    let next = net.cri.run(&net.config("next"))?;
    let network = net.cri.sandbox(&next)?.network.context("no network")?;
    net.host
        .sh(&format!("busybox ping -c 1 -W 10 {}", network.ip))?;
    ensure!(net.remains()? != before, "the plugin hung for nothing");
    std::fs::write(net.host.dir().join("open"), "")?;
    for id in [&next, &gone] {
        net.cri.remove_pod(id)?;
    }
    net.ensure_clean(&before)
}

/// The daemon is killed while a pod is made, and the next one cannot undo it.
pub(super) fn half_made() -> anyhow::Result<()> {
    let mut net = Net::new()?;
    let before = net.remains()?;
    let dir = net.host.dir();
    let (there, broken) = (dir.join("there"), dir.join("broken"));
    std::fs::write(&broken, "")?;
    let script = format!(
        r#"if test "$CNI_COMMAND" = ADD; then touch {there}; exec sleep 1000; fi
           if test "$CNI_COMMAND" = DEL && test -e {broken}; then
             echo '{{"code": 11, "msg": "the switch does not answer"}}'; exit 1
           fi; exec /usr/lib/cni/bridge"#,
        there = there.display(),
        broken = broken.display(),
    );
    net.host.write_plugin("bridge", &script)?;
    let (socket, config) = (net.socket(), net.config("half-made"));
    let call = std::thread::spawn(move || anyhow::Ok(Cri::at(&socket)?.run(&config)?));
    wait_for(&there)?;
    net.daemon.kill()?;
    ensure!(call.join().expect("no panic").is_err(), "it was answered");
    net.daemon.restart()?;
    net.cri = Cri::connect(&net.daemon)?;

    let list = || {
        let request = v1::ListPodSandboxRequest::default();
        net.cri
            .wait(net.cri.runtime.clone().list_pod_sandbox(request))
    };
    let deadline = Instant::now() + PATIENCE;
    let pod = loop {
        if let Some(pod) = list()?.items.pop() {
            break pod;
        }
        ensure!(Instant::now() < deadline, "it is not there");
        std::thread::sleep(Duration::from_millis(50));
    };
    ensure!(
        pod.state() == v1::PodSandboxState::SandboxNotready
            && pod.metadata == net.config("half-made").metadata,
        "{pod:?}"
    );
    refused(
        net.cri.remove_pod(&pod.id),
        Code::Unavailable,
        &["the switch does not answer"],
    )?;
    std::fs::remove_file(&broken)?;
    net.cri.remove_pod(&pod.id)?;
    ensure!(list()?.items.is_empty());
    net.ensure_clean(&before)
}

/// A VM ends and a plugin hangs on DEL: clients know of the end meanwhile.
pub(super) fn told_before_del() -> anyhow::Result<()> {
    let net = Net::on(Host::with_network()?, &["--cni-timeout", "1h"])?;
    let before = net.remains()?;
    let pod = net.cri.run(&net.config("ends"))?;
    let request = v1::GetEventsRequest {};
    let mut events = net
        .cri
        .wait(net.cri.runtime.clone().get_container_events(request))?;
    waiting(&net.host, "bridge", "DEL", false)?;
    kill_process(net.cri.vmm(&pod)?, Signal::KILL)?;
    wait_for(&net.host.dir().join("there"))?;
    let state = net.cri.sandbox(&pod)?.state();
    ensure!(state == v1::PodSandboxState::SandboxNotready, "{state:?}");
    loop {
        let message = async { events.message().await.map(tonic::Response::new) };
        let event = net.cri.wait(message)?.context("the stream ended")?;
        if event.container_event_type() == v1::ContainerEventType::ContainerStoppedEvent {
            ensure!(event.container_id == pod, "{event:?}");
            break;
        }
    }
    std::fs::write(net.host.dir().join("open"), "")?;
    net.cri.remove_pod(&pod)?;
    net.ensure_clean(&before)
}
