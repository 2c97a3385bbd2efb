//! The event loop: one thread, epoll. Accepts the host's connections, feeds
//! requests to [`Agent`], delivers its answers and events, and moves containers'
//! streams.

use crate::agent::Agent;
use crate::connection::{ConnectionError, Framed};
use crate::container::Caller;
use crate::error::AgentError;
use crate::listener::Listener;
use crate::log;
use crate::poller::{Poller, Wakeup};
use crate::stream::{CHUNK, Link, Pumped, Slot};
use guest_api::proto::client_message::Call;
use guest_api::proto::open_stream::Stream;
use guest_api::proto::response::Result as Answer;
use guest_api::proto::server_message::Kind;
use guest_api::proto::{ClientMessage, OpenStream, ServerMessage, StreamOpened, SubscribeResponse};
use nix::sys::signalfd::SignalFd;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How often a removal that waits for the kernel is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// Most connections at once.
const MAX_CONNECTIONS: usize = 4096;

/// What a registered descriptor is.
#[derive(Clone, Debug)]
enum Source {
    Signals,
    Listener(Port),
    Control,
    /// A stream connection before its OpenStream.
    Newcomer,
    /// Both ends of an open stream name its link.
    Connection(u64),
    Container(u64),
}

/// Which of the two ports a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Control,
    Stream,
}

#[derive(Debug)]
struct Control {
    framed: Framed,
    /// Number of the last event sent, of a connection that subscribed.
    subscribed: Option<u64>,
}

/// A stream on its way and the numbers of its two registrations.
#[derive(Debug)]
struct OpenLink {
    link: Link,
    connection: u64,
    container: u64,
}

/// See the module's documentation.
pub(crate) struct Server {
    agent: Agent,
    poller: Poller,
    signals: SignalFd,
    sources: BTreeMap<u64, Source>,
    listeners: BTreeMap<u64, Listener>,
    controls: BTreeMap<u64, Control>,
    newcomers: BTreeMap<u64, Framed>,
    links: BTreeMap<u64, OpenLink>,
    next_link: u64,
    /// Links that had to give way before they were done.
    unfinished: Vec<u64>,
    scratch: Vec<u8>,
}

impl Server {
    /// A server without listeners. `signals` delivers SIGCHLD.
    pub(crate) fn new(agent: Agent, signals: SignalFd) -> Result<Self, Errno> {
        let mut poller = Poller::new()?;
        let token = poller.add(signals.as_fd(), EventFlags::IN)?;
        Ok(Self {
            agent,
            poller,
            signals,
            sources: BTreeMap::from([(token, Source::Signals)]),
            listeners: BTreeMap::new(),
            controls: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 0,
            unfinished: Vec::new(),
            scratch: vec![0; CHUNK],
        })
    }

    /// Adds a listener.
    pub(crate) fn listen(&mut self, listener: Listener, port: Port) -> Result<(), Errno> {
        let token = self.poller.add(listener.fd(), EventFlags::IN)?;
        self.sources.insert(token, Source::Listener(port));
        self.listeners.insert(token, listener);
        Ok(())
    }

    /// Serves until the host asks for the shutdown.
    pub(crate) fn run(&mut self) -> Result<(), Errno> {
        while !self.agent.stopping {
            self.turn(None)?;
        }
        Ok(())
    }

    /// One round: waits for something to happen (no longer than `limit`) and
    /// does all that follows from it.
    pub(crate) fn turn(&mut self, limit: Option<Duration>) -> Result<(), Errno> {
        let (busy, waiting) = self.agent.advance_removals();
        self.look_after_ended();
        self.deliver();
        let timeout = if busy || !self.unfinished.is_empty() {
            Some(Duration::ZERO)
        } else if waiting {
            Some(RETRY)
        } else {
            limit
        };
        let wakeups = match self.poller.wait(timeout) {
            Err(Errno::INTR) => Vec::new(),
            other => other?,
        };
        for id in std::mem::take(&mut self.unfinished) {
            self.pump(id);
        }
        for wakeup in wakeups {
            self.on_wakeup(wakeup);
        }
        self.look_after_ended();
        self.deliver();
        Ok(())
    }

    fn on_wakeup(&mut self, wakeup: Wakeup) {
        let Wakeup { token, flags } = wakeup;
        match self.sources.get(&token).cloned() {
            Some(Source::Signals) => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.agent.reap();
            }
            Some(Source::Listener(port)) => self.accept(token, port),
            Some(Source::Control) => {
                if let Err(e) = self.on_control(token, flags) {
                    self.close_control(token, &e);
                }
            }
            Some(Source::Newcomer) => self.on_newcomer(token),
            Some(Source::Connection(id)) => self.on_connection(id, flags),
            Some(Source::Container(id)) => self.pump(id),
            None => self.on_handover(token),
        }
    }

    /// Everything else that is registered is a container's channel.
    fn on_handover(&mut self, token: u64) {
        let waits =
            |c: &crate::container::Container| c.handover.as_ref().is_some_and(|(_, t)| *t == token);
        let found = self.agent.containers.iter().find(|(_, c)| waits(c));
        if let Some(id) = found.map(|(id, _)| id.clone()) {
            self.agent.on_handover(&id);
        }
    }

    fn accept(&mut self, token: u64, port: Port) {
        // A bounded number at once; epoll tells of the rest again.
        for _ in 0..16 {
            let Some(listener) = self.listeners.get(&token) else {
                return;
            };
            match listener.accept() {
                Ok(Some(socket)) => self.add_connection(socket, port),
                Ok(None) => return,
                Err(e) => {
                    log::warn(&format!("accepting a connection failed: {e}"));
                    return;
                }
            }
        }
    }

    /// Takes over a connection from the host.
    pub(crate) fn add_connection(&mut self, socket: OwnedFd, port: Port) {
        if self.controls.len() + self.newcomers.len() + self.links.len() >= MAX_CONNECTIONS {
            log::warn("too many connections, one was closed");
            return;
        }
        let added = Framed::new(socket).and_then(|framed| {
            let token = self.poller.add(framed.fd(), EventFlags::IN)?;
            Ok((token, framed))
        });
        let (token, framed) = match added {
            Ok(added) => added,
            Err(e) => return log::warn(&format!("a connection was closed: {e}")),
        };
        match port {
            Port::Control => {
                self.sources.insert(token, Source::Control);
                let subscribed = None;
                self.controls.insert(token, Control { framed, subscribed });
                self.rearm_control(token);
            }
            Port::Stream => {
                self.sources.insert(token, Source::Newcomer);
                self.newcomers.insert(token, framed);
            }
        }
    }

    fn on_control(&mut self, token: u64, flags: EventFlags) -> Result<(), ConnectionError> {
        let Some(control) = self.controls.get_mut(&token) else {
            return Ok(());
        };
        if flags.contains(EventFlags::OUT) {
            control.framed.flush()?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            control.framed.fill(&mut self.scratch)?;
        }
        while let Some(control) = self.controls.get_mut(&token) {
            let Some(message) = control.framed.next_message::<ClientMessage>()? else {
                break;
            };
            self.on_call(token, message);
        }
        self.rearm_control(token);
        Ok(())
    }

    fn on_call(&mut self, connection: u64, message: ClientMessage) {
        let caller = Caller {
            connection,
            call: message.id,
        };
        match message.call {
            None => {
                let error = AgentError::invalid("call", "no call that this version knows");
                let mut answer = error.into_wire();
                answer.code = wire::proto::error::Code::Unimplemented.into();
                self.agent.answer(caller, Err(AgentError::Reported(answer)));
            }
            Some(Call::Subscribe(request)) => {
                let last_seq = self.agent.events.last_seq();
                if let Some(control) = self.controls.get_mut(&connection) {
                    control.subscribed = Some(request.after_seq);
                }
                let answer = Answer::Subscribe(SubscribeResponse { last_seq });
                self.agent.answer(caller, Ok(answer));
            }
            Some(call) => self.agent.handle(caller, call, &mut self.poller),
        }
    }

    fn rearm_control(&mut self, token: u64) {
        let Some(control) = self.controls.get(&token) else {
            return;
        };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, control.framed.wants_read());
        flags.set(EventFlags::OUT, control.framed.wants_write());
        let watched = self.poller.watch(control.framed.fd(), token, flags);
        if let Err(e) = watched {
            self.close_control(token, &e.into());
        }
    }

    fn close_control(&mut self, token: u64, why: &ConnectionError) {
        self.sources.remove(&token);
        if self.controls.remove(&token).is_some() && !matches!(why, ConnectionError::Closed) {
            log::warn(&format!("a control connection was closed: {why}"));
        }
    }

    /// Sends the answers and events that have piled up.
    fn deliver(&mut self) {
        for (token, response) in std::mem::take(&mut self.agent.answers) {
            let message = ServerMessage {
                kind: Some(Kind::Response(response)),
            };
            self.send(token, &message);
        }
        let behind: Vec<(u64, u64)> = self
            .controls
            .iter()
            .filter_map(|(token, control)| Some((*token, control.subscribed?)))
            .filter(|(_, seq)| *seq < self.agent.events.last_seq())
            .collect();
        for (token, seq) in behind {
            for event in self.agent.events.after(seq).to_vec() {
                let seq = event.seq;
                let message = ServerMessage {
                    kind: Some(Kind::Event(event)),
                };
                self.send(token, &message);
                if let Some(control) = self.controls.get_mut(&token) {
                    control.subscribed = Some(seq);
                }
            }
        }
    }

    fn send(&mut self, token: u64, message: &ServerMessage) {
        let Some(control) = self.controls.get_mut(&token) else {
            // Whoever asked is gone.
            return;
        };
        let had_backlog = control.framed.wants_write();
        match control.framed.send(message) {
            Ok(()) if had_backlog || !control.framed.wants_write() => {}
            Ok(()) => self.rearm_control(token),
            Err(e) => self.close_control(token, &e),
        }
    }

    fn on_newcomer(&mut self, token: u64) {
        let Some(framed) = self.newcomers.get_mut(&token) else {
            return;
        };
        let step = framed
            .fill(&mut self.scratch)
            .and_then(|()| framed.next_message::<OpenStream>());
        let request = match step {
            Ok(None) => return,
            Ok(Some(request)) => Some(request),
            Err(ConnectionError::Closed) => None,
            Err(e) => {
                log::warn(&format!("a stream connection was closed: {e}"));
                None
            }
        };
        self.sources.remove(&token);
        let Some(framed) = self.newcomers.remove(&token) else {
            return;
        };
        if let Some(request) = request {
            self.poller.remove(framed.fd());
            if let Err(e) = self.open_stream(framed, &request) {
                log::warn(&format!("opening a stream failed: {e}"));
            }
        }
    }

    fn open_stream(
        &mut self,
        mut framed: Framed,
        request: &OpenStream,
    ) -> Result<(), ConnectionError> {
        let (container, left) = match self.take_stream(request) {
            Ok(taken) => taken,
            Err(e) => {
                let error = Some(e.into_wire());
                return framed.send(&StreamOpened { error });
            }
        };
        let sent = framed.send(&StreamOpened { error: None });
        let raw = sent.map(|()| framed.into_raw());
        let stream = request.stream();
        let Ok(Some((connection, came))) = raw else {
            self.put_back(&request.container_id, stream, Slot::Idle(container, left));
            return Err(ConnectionError::Backlog);
        };
        let pending = if stream == Stream::Stdin { came } else { left };
        let id = request.container_id.clone();
        let link = Link::new(id, stream, connection, container, pending);
        self.add_link(link)
    }

    /// Takes a stream's descriptor out of its container.
    fn take_stream(&mut self, request: &OpenStream) -> Result<(OwnedFd, Vec<u8>), AgentError> {
        let id = &request.container_id;
        let stream = request.stream();
        let Some(container) = self.agent.containers.get_mut(id) else {
            return Err(AgentError::NotFound {
                what: format!("container {id}"),
                remedy: "",
            });
        };
        let Some(slot) = container.streams.get_mut(stream) else {
            return Err(AgentError::invalid("stream", "no stream is named"));
        };
        let name = stream
            .as_str_name()
            .trim_start_matches("STREAM_")
            .to_lowercase();
        match std::mem::replace(slot, Slot::Open) {
            Slot::Idle(fd, left) => Ok((fd, left)),
            Slot::Open => Err(AgentError::Exists {
                what: format!("a connection to {name} of container {id}"),
            }),
            Slot::Absent => {
                *slot = Slot::Absent;
                Err(AgentError::Precondition {
                    problem: format!("container {id} has no {name}"),
                    remedy: "a terminal has no stderr; stdin exists where it was asked for",
                })
            }
            Slot::Ended => {
                *slot = Slot::Ended;
                Err(AgentError::Precondition {
                    problem: format!("{name} of container {id} has ended"),
                    remedy: "what was sent before is not kept",
                })
            }
        }
    }

    fn put_back(&mut self, container_id: &str, stream: Stream, slot: Slot) {
        let container = self.agent.containers.get_mut(container_id);
        if let Some(place) = container.and_then(|c| c.streams.get_mut(stream)) {
            *place = slot;
        }
    }

    fn add_link(&mut self, link: Link) -> Result<(), ConnectionError> {
        let id = self.next_link;
        self.next_link += 1;
        let nothing = EventFlags::ONESHOT;
        let added = self
            .poller
            .add(link.connection_fd(), nothing)
            .and_then(|c| Ok((c, self.poller.add(link.container_fd(), nothing)?)));
        let (connection, container) = match added {
            Ok(tokens) => tokens,
            Err(e) => {
                let (owner, stream) = (link.container_id.clone(), link.stream);
                self.put_back(&owner, stream, link.into_idle());
                return Err(e.into());
            }
        };
        self.sources.insert(connection, Source::Connection(id));
        self.sources.insert(container, Source::Container(id));
        self.links.insert(
            id,
            OpenLink {
                link,
                connection,
                container,
            },
        );
        self.pump(id);
        Ok(())
    }

    fn on_connection(&mut self, id: u64, flags: EventFlags) {
        let Some(open) = self.links.get_mut(&id) else {
            return;
        };
        if !open.link.is_input() {
            let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            let heard = flags.intersects(EventFlags::IN | EventFlags::RDHUP);
            if (hung_up || heard) && !open.link.check_peer(hung_up, &mut self.scratch) {
                return self.close_link(id, Pumped::PeerGone);
            }
        }
        self.pump(id);
    }

    fn pump(&mut self, id: u64) {
        let Some(open) = self.links.get_mut(&id) else {
            return;
        };
        open.link.is_final = self
            .agent
            .containers
            .get(&open.link.container_id)
            .is_none_or(crate::container::Container::output_is_final);
        let pumped = open.link.pump(&mut self.scratch);
        let (input, heard) = (open.link.is_input(), EventFlags::IN | EventFlags::RDHUP);
        let listen = if open.link.listens() && !input {
            heard
        } else {
            EventFlags::empty()
        };
        let (connection, container) = match pumped {
            Pumped::Again => return self.unfinished.push(id),
            Pumped::Ended | Pumped::PeerGone => return self.close_link(id, pumped),
            Pumped::WaitConnection if input => (Some(heard), None),
            Pumped::WaitConnection => (Some(EventFlags::OUT | listen), None),
            Pumped::WaitContainer if input => (None, Some(EventFlags::OUT)),
            Pumped::WaitContainer => (Some(listen), Some(EventFlags::IN)),
        };
        let watch = |fd: BorrowedFd<'_>, token: u64, flags: Option<EventFlags>| match flags {
            Some(flags) => self.poller.watch(fd, token, flags | EventFlags::ONESHOT),
            None => Ok(()),
        };
        let watched = watch(open.link.connection_fd(), open.connection, connection)
            .and_then(|()| watch(open.link.container_fd(), open.container, container));
        if let Err(e) = watched {
            log::warn(&format!("a stream was closed: {e}"));
            self.close_link(id, Pumped::PeerGone);
        }
    }

    fn close_link(&mut self, id: u64, why: Pumped) {
        let Some(open) = self.links.remove(&id) else {
            return;
        };
        self.sources.remove(&open.connection);
        self.sources.remove(&open.container);
        let OpenLink { link, .. } = open;
        // The descriptor may live on in the container.
        self.poller.remove(link.container_fd());
        let (owner, stream) = (link.container_id.clone(), link.stream);
        let slot = if why == Pumped::Ended {
            link.finish();
            let terminal_input = stream == Stream::Stdin && self.has_terminal(&owner);
            if terminal_input {
                // A terminal has no end of input of its own; it may be opened
                // again.
                link.into_idle()
            } else {
                Slot::Ended
            }
        } else {
            link.into_idle()
        };
        self.put_back(&owner, stream, slot);
    }

    fn has_terminal(&self, container_id: &str) -> bool {
        self.agent
            .containers
            .get(container_id)
            .is_some_and(|c| c.terminal)
    }

    /// Streams of containers that ended send their rest and end; streams of
    /// removed containers close.
    fn look_after_ended(&mut self) {
        for container_id in std::mem::take(&mut self.agent.ended) {
            let exists = self.agent.containers.contains_key(&container_id);
            let links: Vec<u64> = self
                .links
                .iter()
                .filter(|(_, open)| open.link.container_id == container_id)
                .map(|(id, _)| *id)
                .collect();
            for id in links {
                if exists {
                    self.pump(id);
                } else {
                    self.close_link(id, Pumped::Ended);
                }
            }
        }
    }
}
