//! The CRI: events, none lost and none doubled.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use cri_api::v1::{self, ContainerEventType};
use spherule_tests::Daemon;
use spherule_tests::cri::{Cri, container_config, sandbox_config};
use tonic::Streaming;

pub(crate) const TESTS: &[Test] = &[
    ("events_go_on_across_a_restart_of_the_daemon", restart),
    ("connection_carries_more_calls_than_a_node_has_pods", many),
];

type Events = Streaming<v1::ContainerEventResponse>;

fn subscribe(cri: &Cri) -> anyhow::Result<Events> {
    let request = v1::GetEventsRequest {};
    Ok(cri.wait(cri.runtime.clone().get_container_events(request))?)
}

/// A kubelet has one connection for all: what waits must not hold up the rest.
fn many() -> anyhow::Result<()> {
    let cri = Cri::connect(&*shared::daemon()?)?;
    let waiting: Vec<Events> = (0..500)
        .map(|_| subscribe(&cri))
        .collect::<Result<_, _>>()?;
    let version = v1::VersionRequest {
        version: "v1".to_owned(),
    };
    cri.wait(cri.runtime.clone().version(version))?;
    drop(waiting);
    Ok(())
}

/// The next event: of what, and which. Its statuses must be those of the pod.
fn next(cri: &Cri, events: &mut Events, sandbox: &str) -> anyhow::Result<(String, char)> {
    let message = async { events.message().await.map(tonic::Response::new) };
    let event = cri.wait(message)?.context("the stream ended")?;
    let status = event.pod_sandbox_status.as_ref().context("no pod status")?;
    ensure!(
        status.id == sandbox && status.metadata.is_some(),
        "{event:?}"
    );
    ensure!(event.created_at > 0);
    let letter = match event.container_event_type() {
        ContainerEventType::ContainerCreatedEvent => 'C',
        ContainerEventType::ContainerStartedEvent => 'S',
        ContainerEventType::ContainerStoppedEvent => 'T',
        ContainerEventType::ContainerDeletedEvent => 'D',
    };
    Ok((event.container_id, letter))
}

fn restart() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let logs = tempfile::tempdir()?;
    let cri = Cri::connect(&daemon)?;
    let mut first = subscribe(&cri)?;
    let mut second = subscribe(&cri)?;
    let config = sandbox_config("events", logs.path());
    let pod = cri.run(&config)?;
    let long = cri.create(&pod, container_config("long", "sleep 1000"), &config)?;
    cri.start(&long)?;
    // Ends while no daemon runs.
    let script = "while [ ! -e /stop ]; do sleep 0.1; done; sleep 2; exit 5";
    let short = cri.create(&pod, container_config("short", script), &config)?;
    cri.start(&short)?;
    for events in [&mut first, &mut second] {
        for expected in [
            (&pod, 'C'),
            (&pod, 'S'),
            (&long, 'C'),
            (&long, 'S'),
            (&short, 'C'),
            (&short, 'S'),
        ] {
            let (id, letter) = next(&cri, events, &pod)?;
            ensure!((&id, letter) == expected, "{id} {letter}, not {expected:?}");
        }
    }
    // Another call's answer comes after the last event was taken and recorded.
    cri.exec(&short, &["touch", "/stop"])?;
    drop((first, second, cri));
    daemon.kill()?;
    std::thread::sleep(std::time::Duration::from_secs(4));
    daemon.restart()?;

    let cri = Cri::connect(&daemon)?;
    cri.ended(&short)?;
    let mut events = subscribe(&cri)?;
    let (id, letter) = next(&cri, &mut events, &pod)?;
    ensure!((&id, letter) == (&short, 'T'), "{id} {letter}");
    cri.remove(&short)?;
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    let mut rest = Vec::new();
    for _ in 0..5 {
        rest.push(next(&cri, &mut events, &pod)?);
    }
    let of = |wanted: &str| -> String {
        let own = rest.iter().filter(|(id, _)| id == wanted);
        own.map(|(_, letter)| *letter).collect()
    };
    ensure!(
        of(&short) == "D" && of(&long) == "TD" && of(&pod) == "TD",
        "{rest:?}"
    );
    ensure!(rest.last().map(|(id, _)| id) == Some(&pod), "{rest:?}");
    Ok(())
}
