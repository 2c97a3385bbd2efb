//! A connection and the unix socket at its host end.

use super::connection::Connection;
use super::packet::{
    HEADER_SIZE, Header, MAX_DATA, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use crate::chain::Buffers;
use crate::guest_io;
use rustix::event::epoll::EventFlags;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// What is to become of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over and the guest knows.
    Over,
    /// It is over; the guest is to be told by a reset.
    Reset,
}

/// What an endpoint waits for that has a time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Nothing,
    /// The guest's answer to a request.
    Response,
    /// Room in the guest for what a client said that is gone: until then the guest
    /// does not hear of its end.
    Room,
    /// The guest's reset, after it was told that the client is gone.
    Reset,
}

/// A connection with its socket.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) connection: Connection,
    socket: UnixStream,
    /// From the guest, for the client; bounded by the credit given.
    outgoing: VecDeque<u8>,
    /// What epoll said last, until a call would have blocked (edge-triggered).
    readable: bool,
    writable: bool,
    /// The client is gone; what it sent may still be there to read.
    hung_up: bool,
    /// The guest has reset the connection; what it sent before is still
    /// delivered.
    draining: bool,
    /// Something failed for which there is no better answer than a reset.
    failed: bool,
}

impl Endpoint {
    pub(super) fn new(connection: Connection, socket: UnixStream) -> Self {
        Endpoint {
            connection,
            socket,
            outgoing: VecDeque::new(),
            readable: true,
            writable: true,
            hung_up: false,
            draining: false,
            failed: false,
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn fate(&self) -> Fate {
        let connection = &self.connection;
        if self.draining {
            return if self.outgoing.is_empty() {
                Fate::Over
            } else {
                Fate::Lives
            };
        }
        if connection.is_unrequested() {
            return if self.hung_up {
                Fate::Over
            } else {
                Fate::Lives
            };
        }
        let refused = self.hung_up && !connection.is_established();
        let closed = connection.guest_ended(SHUTDOWN_BOTH) && self.outgoing.is_empty();
        if self.failed || refused || closed {
            Fate::Reset
        } else {
            Fate::Lives
        }
    }

    pub(super) fn waits_for(&self) -> Wait {
        if self.draining || self.connection.is_unrequested() {
            Wait::Nothing
        } else if !self.connection.is_established() {
            Wait::Response
        } else if self.connection.is_lingering() {
            Wait::Reset
        } else if self.hung_up && self.connection.wants_data() && self.connection.credit() == 0 {
            Wait::Room
        } else {
            Wait::Nothing
        }
    }

    /// Takes note of what epoll says about the socket.
    pub(super) fn socket_event(&mut self, flags: EventFlags) {
        let gone = EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | gone) {
            self.readable = true;
        }
        if flags.intersects(gone) {
            self.hung_up = true;
            self.stop_receiving();
        }
        if flags.contains(EventFlags::OUT) {
            self.writable = true;
            self.flush();
        }
        self.apply_ends();
    }

    /// Tells the client that the guest accepted.
    pub(super) fn greet(&mut self) {
        let line = format!("OK {}\n", self.connection.ports().host);
        // The socket is fresh and its buffer empty: a short write is a client
        // that is gone.
        let sent = (&self.socket).write(line.as_bytes());
        if !sent.is_ok_and(|len| len == line.len()) {
            self.failed = true;
        }
    }

    /// Data from the guest, which had the credit for it.
    pub(super) fn deliver(&mut self, data: &Buffers<'_>) {
        if self.connection.host_ended(SHUTDOWN_RECEIVE) {
            self.taken(data.len());
            return;
        }
        let mut sent = 0;
        if self.writable && self.outgoing.is_empty() {
            match guest_io::send(self.socket.as_fd(), data) {
                Ok(len) => sent = len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => {
                    self.stop_receiving();
                    self.taken(data.len());
                    return;
                }
            }
            self.taken(sent);
        }
        let mut rest = vec![0; data.len() - sent];
        data.clone().split_off(sent).copy_to(&mut rest);
        self.outgoing.extend(rest);
        self.flush();
    }

    /// The guest ended a direction.
    pub(super) fn guest_ended(&mut self) {
        self.apply_ends();
    }

    /// The guest knows the connection no more.
    pub(super) fn guest_reset(&mut self) {
        self.draining = true;
    }

    /// Writes to the client what waits for it, as far as it takes it.
    fn flush(&mut self) {
        while self.writable && !self.outgoing.is_empty() {
            let (front, back) = self.outgoing.as_slices();
            let piece = if front.is_empty() { back } else { front };
            match rustix::net::send(
                &self.socket,
                piece,
                rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
            ) {
                Ok(len) => {
                    self.outgoing.drain(..len);
                    self.taken(len);
                }
                Err(rustix::io::Errno::AGAIN) => self.writable = false,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => self.stop_receiving(),
            }
        }
        if self.outgoing.is_empty() {
            // An idle connection holds no memory.
            self.outgoing.shrink_to_fit();
        }
    }

    /// The client took bytes, or they were thrown away.
    fn taken(&mut self, len: usize) {
        // At most the buffer's size.
        self.connection
            .forward(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// The client takes no more: what it did not take is thrown away.
    fn stop_receiving(&mut self) {
        self.connection.end(SHUTDOWN_RECEIVE);
        let waiting = self.outgoing.len();
        self.outgoing = VecDeque::new();
        self.taken(waiting);
    }

    /// Carries over to the socket which directions the guest ended.
    fn apply_ends(&mut self) {
        // Errors mean that the client is gone, of which epoll tells.
        if self.connection.guest_ended(SHUTDOWN_SEND) && self.outgoing.is_empty() {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        if self.connection.guest_ended(SHUTDOWN_RECEIVE) {
            let _ = self.socket.shutdown(Shutdown::Read);
            if self.hung_up {
                // Its last bytes will never be read to their end.
                self.connection.end(SHUTDOWN_SEND);
            }
        }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packet(&mut self) -> bool {
        if self.draining {
            return false;
        }
        let data = self.readable && self.connection.wants_data();
        if data && self.connection.credit() == 0 {
            self.connection.stall();
        }
        self.connection.has_control() || data && self.connection.credit() > 0
    }

    /// Writes the next packet into a buffer of the guest's; its size.
    pub(super) fn next_packet(
        &mut self,
        header_space: &Buffers<'_>,
        data_space: &Buffers<'_>,
    ) -> Option<usize> {
        if !self.has_packet() {
            return None;
        }
        if let Some(header) = self.connection.next_control() {
            return Some(put(&header, header_space));
        }
        let credit = usize::try_from(self.connection.credit()).unwrap_or(usize::MAX);
        let mut space = data_space.clone();
        drop(space.split_off(credit.min(MAX_DATA)));
        match guest_io::receive(self.socket.as_fd(), &space) {
            Ok(0) => self.connection.end(if self.hung_up {
                SHUTDOWN_BOTH
            } else {
                SHUTDOWN_SEND
            }),
            Ok(len) => {
                // At most MAX_DATA.
                let header = self.connection.data(u32::try_from(len).unwrap_or(u32::MAX));
                return Some(put(&header, header_space) + len);
            }
            Err(error) if is_retry(&error) => {
                self.readable = false;
                return None;
            }
            Err(_) => {
                // The client closed without reading what was sent to it.
                self.stop_receiving();
                self.connection.end(SHUTDOWN_SEND);
            }
        }
        let end = self.connection.next_control()?;
        Some(put(&end, header_space))
    }
}

fn is_retry(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

fn put(header: &Header, space: &Buffers<'_>) -> usize {
    space.copy_from(&header.encode());
    HEADER_SIZE
}
