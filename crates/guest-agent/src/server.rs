//! The event loop: one thread, epoll. Accepts the host's connections, feeds
//! requests to [`Agent`], delivers its answers and events, and moves containers'
//! streams.

#[cfg(test)]
mod exec_tests;
mod execs;
mod forwards;
mod streams;
#[cfg(test)]
mod tests;

use crate::agent::Agent;
use crate::connection::{ConnectionError, Framed};
use crate::container::Caller;
use crate::error::AgentError;
use crate::exec::session::End;
use crate::forward;
use crate::listener::Listener;
use crate::log;
use crate::poller::{Poller, Wakeup};
use crate::stream::{CHUNK, Link};
use execs::Execs;
use forwards::Forwards;
use guest_api::proto::client_message::Call;
use guest_api::proto::response::Result as Answer;
use guest_api::proto::server_message::Kind;
use guest_api::proto::{ClientMessage, ServerMessage, SubscribeResponse};
use nix::sys::signalfd::SignalFd;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
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
    /// A descriptor of an exec session.
    Exec(u64, End),
    /// An end of a port-forward connection.
    Forward(u64, forward::End),
}

/// Which of the ports a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Control,
    Stream,
    Exec,
    Forward,
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
    execs: Execs,
    forwards: Forwards,
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
            execs: Execs::default(),
            forwards: Forwards::default(),
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
        let unfinished = !self.unfinished.is_empty();
        let timeout = if busy || unfinished || self.execs.is_busy() || self.forwards.is_busy() {
            Some(Duration::ZERO)
        } else if waiting {
            Some(RETRY)
        } else {
            limit
        };
        let timeout = self.forwards.limit(self.execs.limit(timeout));
        let wakeups = match self.poller.wait(timeout) {
            Err(Errno::INTR) => Vec::new(),
            other => other?,
        };
        for id in std::mem::take(&mut self.unfinished) {
            self.pump(id);
        }
        self.go_on_with_execs();
        self.go_on_with_forwards();
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
                self.on_others_reaped();
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
            Some(Source::Exec(id, end)) => self.on_exec(id, end, flags),
            Some(Source::Forward(id, end)) => self.on_forward(id, end, flags),
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
        let connections = self.controls.len() + self.newcomers.len() + self.links.len();
        if connections + self.execs.len() + self.forwards.len() >= MAX_CONNECTIONS {
            log::warn("too many connections, one was closed");
            return;
        }
        if port == Port::Exec {
            return self.add_exec(socket);
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
            Port::Forward => self.add_forward(framed, token),
            Port::Exec => {}
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
}
