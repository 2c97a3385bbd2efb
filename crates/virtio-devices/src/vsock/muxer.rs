//! All connections of a device: who is who, whose turn it is, whose time is up.
//!
//! Sockets are watched edge-triggered and endpoints remember what they heard,
//! so that a guest without buffers costs no polling at all.

use super::connection::{Connection, Event, Ports};
use super::endpoint::{Endpoint, Fate, Wait};
use super::packet::{HEADER_SIZE, HOST_CID, Header, MAX_DATA, TYPE_STREAM, op};
use super::unix::{FirstLine, connect_service, listen, read_first_line};
use crate::chain::Buffers;
use crate::wakeup::Wakeup;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use epoll::EventFlags;

/// What epoll calls the descriptors that are no clients.
const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const WAKEUP: u64 = 2;
/// Clients and services are called by numbers from here on, never used again.
const FIRST_TOKEN: u64 = 16;
/// The first port of a connection that the host asks for; services of the host
/// lie below, as their ports name files.
const FIRST_PORT: u32 = 1 << 30;
/// Refusals that may wait before packets from the guest must.
const MAX_REPLIES: usize = 256;
/// Events taken from epoll at once, and how often in one turn.
const EVENTS: usize = 64;
const ROUNDS: usize = 8;
/// Clients accepted in one go.
const ACCEPTS: usize = 32;
/// How long the listener rests when the process has no descriptor left.
const LISTENER_REST: Duration = Duration::from_millis(200);

/// How much and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections, clients without a first line among them.
    pub(super) connections: usize,
    /// For a client to write its first line.
    pub(super) first_line: Duration,
    /// For the guest to answer a request.
    pub(super) response: Duration,
    /// For a guest that is full to take more from a client that is gone, and then to
    /// reset the connection.
    pub(super) reset: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            first_line: Duration::from_secs(10),
            // A guest may be starting up on a slow emulated processor.
            response: Duration::from_secs(60),
            // Linux itself waits 8 s for the other side.
            reset: Duration::from_secs(10),
        }
    }
}

/// All connections of a device.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    socket_path: PathBuf,
    limits: Limits,
    epoll: OwnedFd,
    listener: UnixListener,
    timer: OwnedFd,
    wakeup: Wakeup,
    /// Clients whose first line is not there yet, and how long they have.
    strangers: HashMap<u64, (UnixStream, Instant)>,
    endpoints: HashMap<u64, Link>,
    tokens: HashMap<Ports, u64>,
    /// Endpoints that may have a packet for the guest, in the order of turns.
    ready: VecDeque<u64>,
    /// Resets for packets that belong to no connection.
    replies: VecDeque<Header>,
    /// When something is to be looked at, and what.
    deadlines: BTreeSet<(Instant, u64)>,
    /// What the timer is set to.
    armed: Option<Instant>,
    next_token: u64,
    next_port: u32,
}

/// An endpoint and what the muxer keeps about it.
#[derive(Debug)]
struct Link {
    endpoint: Endpoint,
    /// It stands in `ready`.
    queued: bool,
    wait: Wait,
    deadline: Option<Instant>,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, socket_path: PathBuf, limits: Limits) -> io::Result<Self> {
        let listener = listen(&socket_path)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let wakeup = Wakeup::new();
        let watch = |fd: BorrowedFd<'_>, token| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(token), EventFlags::IN)
        };
        watch(listener.as_fd(), LISTENER)?;
        watch(timer.as_fd(), TIMER)?;
        if let Some(fd) = wakeup.fd() {
            watch(fd, WAKEUP)?;
        }
        Ok(Muxer {
            guest_cid,
            socket_path,
            limits,
            epoll,
            listener,
            timer,
            wakeup,
            strangers: HashMap::new(),
            endpoints: HashMap::new(),
            tokens: HashMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            deadlines: BTreeSet::new(),
            armed: None,
            next_token: FIRST_TOKEN,
            next_port: FIRST_PORT,
        })
    }

    /// Readable while [`Self::poll`] has work.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Has `fd` become readable again although nothing happened outside.
    /// `false`: it cannot.
    pub(super) fn call_again(&self) -> bool {
        self.wakeup.raise()
    }

    /// The driver is gone, and all connections with it. Clients that the guest
    /// has not heard of go on waiting for one that comes.
    pub(super) fn reset(&mut self) {
        self.replies.clear();
        let known: Vec<u64> = self
            .endpoints
            .iter()
            .filter(|(_, link)| !link.endpoint.connection.is_unrequested())
            .map(|(&token, _)| token)
            .collect();
        for token in known {
            self.remove(token);
        }
        self.wakeup.clear();
        self.arm();
    }

    /// Does what the host's sockets and the clock ask for.
    pub(super) fn poll(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        for _ in 0..ROUNDS {
            events.clear();
            match epoll::wait(
                &self.epoll,
                spare_capacity(&mut events),
                Some(&Timespec::default()),
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                self.event(token, flags);
            }
            if events.len() < EVENTS {
                break;
            }
        }
        self.arm();
        Ok(())
    }

    fn event(&mut self, token: u64, flags: EventFlags) {
        match token {
            LISTENER => self.accept(),
            TIMER => self.expire(),
            WAKEUP => self.wakeup.clear(),
            _ if self.strangers.contains_key(&token) => self.first_line(token),
            _ => {
                // Absent: closed since epoll wrote the event.
                if let Some(link) = self.endpoints.get_mut(&token) {
                    link.endpoint.socket_event(flags);
                    self.settle(token);
                }
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            match self.listener.accept() {
                // Beyond the limit a client is let go at once.
                Ok(_) if self.is_full() => {}
                Ok((client, _)) => self.welcome(client),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // No descriptor left: the listener stays readable, and to
                    // be told so for ever would be a busy loop.
                    self.listen_for(EventFlags::empty());
                    self.deadlines
                        .insert((Instant::now() + LISTENER_REST, LISTENER));
                    return;
                }
            }
        }
    }

    fn listen_for(&self, flags: EventFlags) {
        // Both descriptors are valid and the one is in the other: the call
        // cannot fail but for lack of kernel memory.
        let _ = epoll::modify(
            &self.epoll,
            &self.listener,
            epoll::EventData::new_u64(LISTENER),
            flags,
        );
    }

    fn is_full(&self) -> bool {
        self.strangers.len() + self.endpoints.len() >= self.limits.connections
    }

    /// A new client: it has to say what it wants.
    fn welcome(&mut self, client: UnixStream) {
        if client.set_nonblocking(true).is_err() {
            return;
        }
        let Some(token) = self.watch(&client) else {
            return;
        };
        let deadline = Instant::now() + self.limits.first_line;
        self.strangers.insert(token, (client, deadline));
        self.deadlines.insert((deadline, token));
        self.first_line(token);
    }

    fn watch(&mut self, socket: &UnixStream) -> Option<u64> {
        let token = self.next_token;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags).ok()?;
        self.next_token += 1;
        Some(token)
    }

    fn first_line(&mut self, token: u64) {
        let Some((client, _)) = self.strangers.get(&token) else {
            return;
        };
        let line = read_first_line(client);
        if line == FirstLine::Incomplete {
            return;
        }
        let Some((client, deadline)) = self.strangers.remove(&token) else {
            return;
        };
        self.deadlines.remove(&(deadline, token));
        if let FirstLine::Connect(guest) = line {
            let host = self.free_port(guest);
            let connection = Connection::to_guest(self.guest_cid, Ports { host, guest });
            self.insert(token, Endpoint::new(connection, client));
        }
    }

    /// A port of the host's that has no connection with `guest` yet.
    fn free_port(&mut self, guest: u32) -> u32 {
        // Ends: there are fewer connections than ports.
        loop {
            let host = self.next_port;
            self.next_port = match host + 1 {
                next if next < 2 * FIRST_PORT => next,
                _ => FIRST_PORT,
            };
            if !self.tokens.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn insert(&mut self, token: u64, endpoint: Endpoint) {
        self.tokens.insert(endpoint.connection.ports(), token);
        self.endpoints.insert(
            token,
            Link {
                endpoint,
                queued: false,
                wait: Wait::Nothing,
                deadline: None,
            },
        );
        self.settle(token);
    }

    fn remove(&mut self, token: u64) {
        let Some(link) = self.endpoints.remove(&token) else {
            return;
        };
        let ports = link.endpoint.connection.ports();
        if self.tokens.get(&ports) == Some(&token) {
            self.tokens.remove(&ports);
        }
        if link.queued {
            self.ready.retain(|&other| other != token);
        }
        if let Some(deadline) = link.deadline {
            self.deadlines.remove(&(deadline, token));
        }
    }

    /// Ends a connection and tells the guest.
    fn abort(&mut self, token: u64) {
        if let Some(link) = self.endpoints.get_mut(&token) {
            let reset = link.endpoint.connection.reset();
            self.replies.push_back(reset);
        }
        self.remove(token);
    }

    /// To be called after anything happened to an endpoint: buries it, gives it
    /// a turn, limits its time.
    fn settle(&mut self, token: u64) {
        let Some(link) = self.endpoints.get_mut(&token) else {
            return;
        };
        match link.endpoint.fate() {
            Fate::Lives => {}
            Fate::Over => return self.remove(token),
            Fate::Reset => return self.abort(token),
        }
        if !link.queued && link.endpoint.has_packet() {
            link.queued = true;
            self.ready.push_back(token);
        }
        let wait = link.endpoint.waits_for();
        if wait != link.wait {
            link.wait = wait;
            if let Some(deadline) = link.deadline.take() {
                self.deadlines.remove(&(deadline, token));
            }
            let time = match wait {
                Wait::Nothing => return,
                Wait::Response => self.limits.response,
                Wait::Room | Wait::Reset => self.limits.reset,
            };
            let deadline = Instant::now() + time;
            link.deadline = Some(deadline);
            self.deadlines.insert((deadline, token));
        }
    }

    /// Ends what has waited too long.
    fn expire(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        self.armed = None;
        let now = Instant::now();
        while let Some(&(deadline, token)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            if token == LISTENER {
                self.listen_for(EventFlags::IN);
            } else if self.strangers.remove(&token).is_none() {
                self.abort(token);
            }
        }
    }

    /// Sets the timer to the first deadline.
    pub(super) fn arm(&mut self) {
        let first = self.deadlines.first().map(|&(deadline, _)| deadline);
        if first == self.armed {
            return;
        }
        let value = first.map_or(Timespec::default(), |first| {
            // Zero would disarm it.
            let left = first
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            })
        });
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec).is_ok() {
            self.armed = first;
        }
    }

    /// Too many refusals wait for the guest to take them.
    pub(super) fn is_congested(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// A packet from the guest.
    pub(super) fn receive(&mut self, header: &Header, mut data: Buffers<'_>) {
        // Not from this guest, or not for this host (5.10.6.4.2): dropped.
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        if header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let known = self.tokens.get(&ports).copied();
        let Some((token, link)) =
            known.and_then(|token| Some((token, self.endpoints.get_mut(&token)?)))
        else {
            return self.stray(header);
        };
        if link.endpoint.is_draining() {
            if header.op == op::REQUEST {
                // The guest uses its port again; the old client loses what it
                // did not take in all that time.
                self.remove(token);
            }
            return self.stray(header);
        }
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let event = if header.op == op::RW && (len > MAX_DATA || len > data.len()) {
            Event::Violation
        } else {
            link.endpoint.connection.receive(header)
        };
        match event {
            Event::Nothing => {}
            Event::Accepted => link.endpoint.greet(),
            Event::Data => {
                drop(data.split_off(len));
                link.endpoint.deliver(&data);
            }
            Event::Ended => link.endpoint.guest_ended(),
            Event::Reset => link.endpoint.guest_reset(),
            Event::Violation => return self.abort(token),
        }
        self.settle(token);
    }

    /// A packet that belongs to no connection.
    fn stray(&mut self, header: &Header) {
        if header.op == op::REQUEST
            && !self.is_full()
            && let Ok(socket) = connect_service(&self.socket_path, header.dst_port)
            && let Some(token) = self.watch(&socket)
        {
            let connection = Connection::from_guest(header);
            return self.insert(token, Endpoint::new(connection, socket));
        }
        self.refuse(header);
    }

    fn refuse(&mut self, header: &Header) {
        // A reset is never answered: two sides would do so for ever.
        if header.op != op::RST {
            self.replies.push_back(header.refusal());
        }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Writes the next packet into a buffer of the guest's; its size. `None` if
    /// there is none after all.
    pub(super) fn next_packet(
        &mut self,
        header_space: &Buffers<'_>,
        data_space: &Buffers<'_>,
    ) -> Option<usize> {
        if let Some(reply) = self.replies.pop_front() {
            header_space.copy_from(&reply.encode());
            return Some(HEADER_SIZE);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(link) = self.endpoints.get_mut(&token) else {
                continue;
            };
            link.queued = false;
            let size = link.endpoint.next_packet(header_space, data_space);
            // Behind the others, if there is more.
            self.settle(token);
            if size.is_some() {
                return size;
            }
        }
        None
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // A socket that nobody serves is of no use; if it cannot be removed,
        // the next device at this path replaces it.
        let _ = std::fs::remove_file(&self.socket_path);
    }
}
