//! Calls to spherule-init that overlap, and the events it sends.
//!
//! Two tasks serve a connection: one writes what callers queue, one reads and
//! hands answers to the callers that wait for them. Both end with the
//! connection; every waiting caller then gets [`GuestError::Lost`].

use guest_api::proto::{
    ClientMessage, Event, Response, ServerMessage, client_message::Call, response,
    server_message::Kind,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use wire::{FrameDecoder, WireError};

/// Events that may wait for their reader; beyond, the guest waits.
const EVENT_BACKLOG: usize = 256;
/// Requests that may wait to be written.
const REQUEST_BACKLOG: usize = 64;
/// Longest text of an error that is taken from the guest, in characters.
const MAX_TEXT: usize = 2000;

/// Why a call to the guest failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("connecting to the agent failed")]
    Connect(#[source] std::io::Error),
    #[error("the agent's connection broke")]
    Wire(#[from] WireError),
    #[error("the agent closed the connection")]
    Lost,
    #[error("the agent did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The agent's own refusal.
    #[error("{message}")]
    Refused {
        code: wire::proto::error::Code,
        message: String,
    },
    #[error("the agent gave an answer to another call")]
    WrongAnswer,
}

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Response>>>>>;

/// A connection to the agent. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct GuestClient {
    requests: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    last_id: AtomicU64,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for GuestClient {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl GuestClient {
    /// Connects and greets. The receiver gets the guest's events once a
    /// Subscribe call has been made; it ends with the connection.
    pub(crate) async fn connect(
        socket: &Path,
    ) -> Result<(Self, mpsc::Receiver<Event>), GuestError> {
        let stream = super::connect(socket, guest_api::CONTROL_PORT)
            .await
            .map_err(GuestError::Connect)?;
        Self::greet(stream).await
    }

    /// The greeting and the tasks, on a stream that reached the agent.
    async fn greet(mut stream: UnixStream) -> Result<(Self, mpsc::Receiver<Event>), GuestError> {
        let decoder = greet(&mut stream).await?;
        let (reader, writer) = stream.into_split();
        let (requests, queued) = mpsc::channel(REQUEST_BACKLOG);
        let (events_in, events) = mpsc::channel(EVENT_BACKLOG);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let read = tokio::spawn(read_task(reader, decoder, Arc::clone(&waiting), events_in));
        let write = tokio::spawn(write_task(writer, queued));
        let client = Self {
            requests,
            waiting,
            last_id: AtomicU64::new(0),
            tasks: [read, write],
        };
        Ok((client, events))
    }

    /// Makes one call and waits for its answer, at most `limit`.
    pub(crate) async fn call(
        &self,
        call: Call,
        limit: Duration,
    ) -> Result<response::Result, GuestError> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let frame = wire::encode(&ClientMessage {
            id,
            call: Some(call),
        })?;
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            let Some(waiting) = waiting.as_mut() else {
                return Err(GuestError::Lost);
            };
            waiting.insert(id, sender);
        }
        // Forgotten however this ends: the caller may go away, too.
        let _forget = Forget {
            waiting: &self.waiting,
            id,
        };
        let exchange = async {
            self.requests
                .send(frame)
                .await
                .map_err(|_| GuestError::Lost)?;
            answer.await.map_err(|_| GuestError::Lost)
        };
        let response = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| GuestError::Timeout(limit))??;
        match response.result {
            Some(response::Result::Error(error)) => Err(GuestError::refused(&error)),
            Some(result) => Ok(result),
            None => Err(GuestError::WrongAnswer),
        }
    }
}

struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = lock(self.waiting).as_mut() {
            waiting.remove(&self.id);
        }
    }
}

fn lock(
    waiting: &Waiting,
) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Response>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuestError {
    /// The agent's error as text of bounded length.
    pub(crate) fn refused(error: &wire::proto::Error) -> Self {
        let mut message = error.message.clone();
        if !error.field.is_empty() {
            message = format!("{}: {message}", error.field);
        }
        if !error.remedy.is_empty() {
            message = format!("{message}; {}", error.remedy);
        }
        Self::Refused {
            code: error.code(),
            message: printable(&message),
        }
    }
}

/// Text of the guest for logs and people: bounded, no control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .take(MAX_TEXT)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Says Hello and checks the other's; returns what reads the frames that follow.
pub(super) async fn greet(stream: &mut UnixStream) -> Result<FrameDecoder, GuestError> {
    let hello = wire::encode(&wire::hello("spherule"))?;
    stream.write_all(&hello).await.map_err(WireError::from)?;
    let mut decoder = FrameDecoder::default();
    let theirs: wire::proto::Hello = loop {
        if let Some(hello) = decoder.next_message()? {
            break hello;
        }
        if !fill(stream, &mut decoder).await? {
            return Err(GuestError::Lost);
        }
    };
    wire::check_hello(&theirs)?;
    Ok(decoder)
}

/// Reads a message and no byte more, for a stream that turns into raw bytes.
pub(super) async fn read_message<M: prost::Message + Default>(
    stream: &mut UnixStream,
) -> Result<M, GuestError> {
    let length = stream.read_u32_le().await.map_err(WireError::from)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > wire::MAX_FRAME {
        return Err(WireError::TooLarge(length).into());
    }
    let mut message = vec![0; length];
    let read = stream.read_exact(&mut message).await;
    read.map_err(WireError::from)?;
    Ok(M::decode(message.as_slice()).map_err(WireError::from)?)
}

/// Reads some bytes; `false` at the end of the stream.
pub(crate) async fn fill(
    stream: &mut (impl AsyncReadExt + Unpin),
    decoder: &mut FrameDecoder,
) -> Result<bool, WireError> {
    let mut bytes = [0; 8192];
    let got = stream.read(&mut bytes).await?;
    decoder.push(&bytes[..got]);
    Ok(got > 0)
}

async fn read_task(
    mut reader: OwnedReadHalf,
    mut decoder: FrameDecoder,
    waiting: Waiting,
    events: mpsc::Sender<Event>,
) {
    if let Err(error) = read_all(&mut reader, &mut decoder, &waiting, &events).await {
        tracing::debug!(error = %crate::error::chain(&error), "the agent's connection broke");
    }
    // Whoever waits learns it, whoever comes finds the door closed.
    lock(&waiting).take();
}

async fn read_all(
    reader: &mut OwnedReadHalf,
    decoder: &mut FrameDecoder,
    waiting: &Waiting,
    events: &mpsc::Sender<Event>,
) -> Result<(), GuestError> {
    loop {
        while let Some(message) = decoder.next_message::<ServerMessage>()? {
            match message.kind {
                Some(Kind::Response(response)) => {
                    let sender = lock(waiting).as_mut().and_then(|w| w.remove(&response.id));
                    // Its caller may have given up.
                    if let Some(sender) = sender {
                        let _ = sender.send(response);
                    }
                }
                Some(Kind::Event(event)) => {
                    let taken = events.send(event).await;
                    // Nobody takes events any more: the connection is given up.
                    if taken.is_err() {
                        return Ok(());
                    }
                }
                None => {}
            }
        }
        if !fill(reader, decoder).await? {
            return Ok(());
        }
    }
}

async fn write_task(mut writer: OwnedWriteHalf, mut queued: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = queued.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::fake_agent::FakeAgent;
    use guest_api::proto::{
        ContainerExited, ListContainersRequest, ListContainersResponse, SubscribeRequest,
        SubscribeResponse, event,
    };

    const LIMIT: Duration = Duration::from_secs(20);

    async fn pair() -> (GuestClient, mpsc::Receiver<Event>, FakeAgent) {
        let (ours, mut agent) = FakeAgent::pair().await;
        let (client, events) = GuestClient::greet(ours).await.unwrap();
        agent.hello().await;
        (client, events, agent)
    }

    async fn say(agent: &mut FakeAgent, kind: Kind) {
        agent.send(&ServerMessage { kind: Some(kind) }).await;
    }

    fn list() -> Call {
        Call::ListContainers(ListContainersRequest {})
    }

    #[tokio::test]
    async fn answers_reach_their_callers_in_any_order() {
        let (client, _events, mut agent) = pair().await;
        let server = tokio::spawn(async move {
            let first: ClientMessage = agent.next().await;
            let second: ClientMessage = agent.next().await;
            for message in [second, first] {
                let result = match message.call.unwrap() {
                    Call::Subscribe(_) => {
                        response::Result::Subscribe(SubscribeResponse { last_seq: 7 })
                    }
                    _ => response::Result::ListContainers(ListContainersResponse::default()),
                };
                let response = Response {
                    id: message.id,
                    result: Some(result),
                };
                say(&mut agent, Kind::Response(response)).await;
            }
            agent
        });
        let subscribe = Call::Subscribe(SubscribeRequest { after_seq: 0 });
        let (a, b) = tokio::join!(client.call(list(), LIMIT), client.call(subscribe, LIMIT));
        assert!(matches!(a.unwrap(), response::Result::ListContainers(_)));
        assert!(matches!(b.unwrap(), response::Result::Subscribe(s) if s.last_seq == 7));
        server.await.unwrap();
    }

    #[tokio::test]
    async fn events_arrive_and_a_lost_connection_ends_calls_and_events() {
        let (client, mut events, mut agent) = pair().await;
        let exited = ContainerExited {
            container_id: "c".into(),
            exit: None,
        };
        let event = Event {
            seq: 1,
            kind: Some(event::Kind::Exited(exited)),
        };
        say(&mut agent, Kind::Event(event.clone())).await;
        assert_eq!(events.recv().await, Some(event));
        drop(agent);
        assert!(matches!(
            client.call(list(), LIMIT).await,
            Err(GuestError::Lost)
        ));
        assert_eq!(events.recv().await, None);
    }

    #[tokio::test]
    async fn hostile_frame_ends_the_connection() {
        let (client, mut events, mut agent) = pair().await;
        agent.stream.write_all(&[0xff; 64]).await.unwrap();
        assert_eq!(events.recv().await, None);
        assert!(matches!(
            client.call(list(), LIMIT).await,
            Err(GuestError::Lost)
        ));
    }

    #[tokio::test]
    async fn refusal_carries_field_and_remedy_without_control_characters() {
        let (client, _events, mut agent) = pair().await;
        let server = tokio::spawn(async move {
            let message: ClientMessage = agent.next().await;
            let error = wire::proto::Error {
                code: wire::proto::error::Code::NotFound.into(),
                message: "no\u{1b}[31m file".into(),
                field: "args[0]".into(),
                remedy: "check it".into(),
            };
            let result = Some(response::Result::Error(error));
            let response = Response {
                id: message.id,
                result,
            };
            say(&mut agent, Kind::Response(response)).await;
        });
        let refused = client.call(list(), LIMIT).await.unwrap_err();
        assert_eq!(refused.to_string(), "args[0]: no [31m file; check it");
        server.await.unwrap();
    }
}
