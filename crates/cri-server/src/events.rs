//! GetContainerEvents: every change of a sandbox or container, to every
//! subscriber, by comparing states.
//!
//! A subscriber's task knows what its client was told of each sandbox and
//! container ([`Phase`]) and, whenever the sandbox crate announces a change, sends
//! what is missing up to the present states. So a slow client, or the announcements'
//! lag, delays events and loses none.
//!
//! What was delivered is recorded too (`events_ledger`): who subscribes after a
//! restart of the daemon, or after a time without any subscriber, first gets what
//! happened since the last delivery. An event counts as delivered once the
//! connection has taken it: a daemon killed within that moment sends it again.

use crate::clock::now_ns;
use crate::convert::{container_state, container_status, sandbox_status};
use crate::error::CriError;
use crate::events_ledger::Told;
use crate::events_missing::{Phase, missing};
use crate::pages::Pages;
use crate::record::{CriContainer, CriSandbox};
use crate::service::RuntimeServer;
use cri_api::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxStatus,
};
use sandbox::SandboxState;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// GetContainerEvents.
pub(crate) async fn get_container_events(
    server: &RuntimeServer,
    _request: GetEventsRequest,
) -> Result<Pages<ContainerEventResponse>, CriError> {
    // Before the states are looked at: what changes then is announced.
    let changes = server.sandboxes.subscribe();
    let told = server.ledger.all().await?;
    let (client, events) = mpsc::channel(1);
    let subscriber = Subscriber {
        server: server.clone(),
        told,
        client,
        last_ns: 0,
    };
    tokio::spawn(subscriber.serve(changes));
    Ok(Box::pin(ReceiverStream::new(events)))
}

type Client = mpsc::Sender<Result<ContainerEventResponse, Status>>;

/// One client and what it was told.
struct Subscriber {
    server: RuntimeServer,
    told: BTreeMap<String, Told>,
    client: Client,
    /// Time of its last event.
    last_ns: i64,
}

/// The client has gone, or events cannot be recorded.
struct Ended;

/// An event to send, and what is known of its subject afterwards.
struct Pending {
    id: String,
    kind: ContainerEventType,
    /// `None`: forget it.
    then: Option<Told>,
}

impl Subscriber {
    async fn serve(mut self, mut changes: broadcast::Receiver<sandbox::Event>) {
        loop {
            if self.catch_up().await.is_err() {
                return;
            }
            tokio::select! {
                change = changes.recv() => match change {
                    // Lagged or not: states are compared.
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = self.client.closed() => return,
            }
            // What has come meanwhile is seen by the same comparison.
            changes = changes.resubscribe();
        }
    }

    /// Sends what the client does not know yet.
    async fn catch_up(&mut self) -> Result<(), Ended> {
        loop {
            let world = World::now(&self.server);
            let pending = world.pending(&self.told);
            if pending.is_empty() {
                return Ok(());
            }
            for event in pending {
                self.send(event).await?;
            }
        }
    }

    async fn send(&mut self, event: Pending) -> Result<(), Ended> {
        let message = self.message(&event);
        self.client.send(Ok(message)).await.map_err(|_| Ended)?;
        // There is room for the next one once the connection has taken this one.
        drop(self.client.reserve().await.map_err(|_| Ended)?);
        let recorded = self.server.ledger.tell(&event.id, event.then.clone()).await;
        if let Err(error) = recorded {
            // Sent again to the next subscriber, better than not at all.
            tracing::error!(id = event.id, %error, "a delivered event was not recorded");
        }
        match event.then {
            Some(told) => self.told.insert(event.id, told),
            None => self.told.remove(&event.id),
        };
        Ok(())
    }

    /// The event with the states as they are now.
    fn message(&mut self, event: &Pending) -> ContainerEventResponse {
        let known = event.then.as_ref().or_else(|| self.told.get(&event.id));
        let sandbox_id = known.map_or(event.id.as_str(), |told| told.sandbox_id.as_str());
        let sandbox = self.server.find_sandbox(sandbox_id).ok();
        let status = match &sandbox {
            Some(sandbox) => Some(sandbox_status(sandbox)),
            None => known_status(&self.told, sandbox_id),
        };
        let containers = self.server.containers_of(sandbox_id);
        // Later than the one before, whatever the clock does.
        self.last_ns = now_ns().max(self.last_ns + 1);
        ContainerEventResponse {
            container_id: event.id.clone(),
            container_event_type: event.kind.into(),
            created_at: self.last_ns,
            pod_sandbox_status: status,
            containers_statuses: containers.iter().map(container_status).collect(),
        }
    }
}

/// What the client was last told of a sandbox that is gone.
fn known_status(told: &BTreeMap<String, Told>, sandbox_id: &str) -> Option<PodSandboxStatus> {
    let mut status = told.get(sandbox_id)?.status()?;
    status.state = cri_api::v1::PodSandboxState::SandboxNotready.into();
    Some(status)
}

/// The states of all sandboxes and containers at one moment.
struct World {
    sandboxes: Vec<(CriSandbox, Vec<CriContainer>)>,
}

impl World {
    fn now(server: &RuntimeServer) -> Self {
        let mut sandboxes = server.cri_sandboxes();
        sandboxes.sort_by_key(|sandbox| sandbox.sandbox.created_at_ns);
        let with_containers = |sandbox: CriSandbox| {
            let mut containers = server.containers_of(sandbox.id());
            containers.sort_by_key(|container| container.container.created_at_ns);
            (sandbox, containers)
        };
        Self {
            sandboxes: sandboxes.into_iter().map(with_containers).collect(),
        }
    }

    /// What somebody does not know who was told this. A sandbox comes before its
    /// containers and goes after them.
    fn pending(&self, told: &BTreeMap<String, Told>) -> Vec<Pending> {
        let mut pending = Vec::new();
        let mut present = BTreeSet::new();
        for (sandbox, containers) in &self.sandboxes {
            let id = sandbox.id();
            present.insert(id);
            let phase = sandbox_phase(sandbox);
            let status = Some(sandbox_status(sandbox));
            let make = |kind, phase| Pending {
                id: id.to_owned(),
                kind,
                then: Some(Told::new(id, phase, status.as_ref())),
            };
            let (coming, going): (Vec<_>, Vec<_>) =
                missing(told.get(id).map(|t| t.phase), Some(phase), true)
                    .into_iter()
                    .partition(|(_, phase)| *phase != Some(Phase::Stopped));
            let event = |(kind, phase): (_, Option<Phase>)| Some(make(kind, phase?));
            pending.extend(coming.into_iter().filter_map(event));
            gone(id, told, containers, &mut pending);
            for container in containers {
                let id = container.id();
                present.insert(id);
                let started = container.container.started_at_ns != 0;
                let phase = container_phase(container);
                for (kind, phase) in missing(told.get(id).map(|t| t.phase), Some(phase), started) {
                    let then = phase.map(|p| Told::new(sandbox.id(), p, None));
                    let id = id.to_owned();
                    pending.push(Pending { id, kind, then });
                }
            }
            pending.extend(going.into_iter().filter_map(event));
        }
        // Of sandboxes that are gone: containers first.
        let mut vanished: Vec<_> = told
            .iter()
            .filter(|(id, told)| {
                !present.contains(id.as_str()) && !present.contains(told.sandbox_id.as_str())
            })
            .collect();
        vanished.sort_by_key(|(id, told)| **id == told.sandbox_id);
        for (id, told) in vanished {
            pending.extend(deleted(id, told));
        }
        pending
    }
}

/// The containers of a sandbox that are gone, while it is not.
fn gone(
    sandbox_id: &str,
    told: &BTreeMap<String, Told>,
    containers: &[CriContainer],
    pending: &mut Vec<Pending>,
) {
    let is_here = |id: &str| containers.iter().any(|container| container.id() == id);
    for (id, told) in told {
        if told.sandbox_id == sandbox_id && id != sandbox_id && !is_here(id) {
            pending.extend(deleted(id, told));
        }
    }
}

fn deleted(id: &str, told: &Told) -> Vec<Pending> {
    let event = |(kind, phase): (_, Option<Phase>)| Pending {
        id: id.to_owned(),
        kind,
        then: phase.map(|phase| told.at(phase)),
    };
    let events = missing(Some(told.phase), None, true);
    events.into_iter().map(event).collect()
}

fn sandbox_phase(sandbox: &CriSandbox) -> Phase {
    match sandbox.sandbox.state {
        SandboxState::Creating => Phase::Created,
        SandboxState::Ready => Phase::Started,
        SandboxState::NotReady | SandboxState::Removing => Phase::Stopped,
    }
}

fn container_phase(container: &CriContainer) -> Phase {
    match container_state(&container.container) {
        ContainerState::ContainerCreated => Phase::Created,
        ContainerState::ContainerRunning => Phase::Started,
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => Phase::Stopped,
    }
}
