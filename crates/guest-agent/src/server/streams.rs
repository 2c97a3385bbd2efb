//! The event loop's part for stream connections: from their OpenStream to the
//! last byte.

use super::{OpenLink, Server, Source};
use crate::connection::{ConnectionError, Framed};
use crate::error::{AgentError, Doing};
use crate::log;
use crate::stream::{Link, Pumped, Slot};
use guest_api::proto::open_stream::Stream;
use guest_api::proto::{OpenStream, StreamOpened};
use rustix::event::epoll::EventFlags;
use std::os::fd::{BorrowedFd, OwnedFd};

impl Server {
    pub(super) fn on_newcomer(&mut self, token: u64) {
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
        let mut link = Link::new(id, stream, connection, container, pending);
        link.keep_open = request.keep_open;
        self.add_link(link)
    }

    /// Takes an output's descriptor out of its container, or a copy of its stdin's.
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
            .to_ascii_lowercase();
        if let Slot::Input(fd) = slot {
            let copy = rustix::io::fcntl_dupfd_cloexec(&*fd, 3);
            return Ok((copy.doing(|| "copying stdin".into())?, Vec::new()));
        }
        match std::mem::replace(slot, Slot::Open) {
            Slot::Idle(fd, left) => Ok((fd, left)),
            Slot::Input(_) | Slot::Open => Err(AgentError::Exists {
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
                    problem: format!("{name} of container {id} has been closed"),
                    remedy: "what was sent before is not kept",
                })
            }
        }
    }

    /// Gives an output back; stdin never left its container.
    fn put_back(&mut self, container_id: &str, stream: Stream, slot: Slot) {
        if stream == Stream::Stdin {
            return;
        }
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

    pub(super) fn on_connection(&mut self, id: u64, flags: EventFlags) {
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

    pub(super) fn pump(&mut self, id: u64) {
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
        if link.is_input() {
            if !link.keep_open {
                self.close_stdin(&owner);
            }
        } else if why == Pumped::Ended {
            link.finish();
            self.put_back(&owner, stream, Slot::Ended);
        } else {
            self.put_back(&owner, stream, link.into_idle());
        }
    }

    /// Ends a container's stdin. A terminal has no end of input of its own; it may
    /// be opened again.
    fn close_stdin(&mut self, container_id: &str) {
        let Some(container) = self.agent.containers.get_mut(container_id) else {
            return;
        };
        if container.terminal {
            return;
        }
        if let Some(slot) = container.streams.get_mut(Stream::Stdin) {
            *slot = Slot::Ended;
        }
        let is_other =
            |open: &OpenLink| open.link.is_input() && open.link.container_id == container_id;
        let others = self.links.iter().filter(|(_, open)| is_other(open));
        for id in others.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.close_link(id, Pumped::Ended);
        }
    }

    /// Streams of containers that ended send their rest and end; streams of
    /// removed containers close.
    pub(super) fn look_after_ended(&mut self) {
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
