//! State and credit of one connection (virtio 1.2, 5.10.6.3 and 5.10.6.5).
//!
//! No socket and no guest memory here: packets and facts go in, packets come
//! out. All counters of bytes wrap at 2^32, as the protocol has it.
//!
//! ```text
//!   host client                                     guest
//!   Requesting ──request sent──> Requested ──RESPONSE──> Established
//!                                                  REQUEST ──^
//! ```
//! A reset or a violation ends the connection in any state; so does the answer
//! to a shutdown of both directions. Ends are the endpoint's to carry out.

use super::packet::{
    HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op,
};

/// Bytes that the guest may send and the host's client has not taken yet.
pub(super) const BUFFER_SIZE: u32 = 256 << 10;
/// The guest is told of room when this much has come free since it was last
/// told: seldom enough to cost little, often enough not to stall it.
const UPDATE_AFTER: u32 = BUFFER_SIZE / 4;

/// The ports of a connection, by which it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The request is not sent yet.
    Requesting,
    /// The guest has the request.
    Requested,
    Established,
}

/// What a packet from the guest means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Counters may have changed; nothing else.
    Nothing,
    /// The guest accepted the host's request.
    Accepted,
    /// The packet's data are for the client.
    Data,
    /// The guest ended a direction.
    Ended,
    /// The guest ended the connection, or refused it.
    Reset,
    /// The guest broke the protocol: the connection is to be reset.
    Violation,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    guest_cid: u64,
    phase: Phase,
    /// The guest's request waits for its response.
    respond: bool,
    /// The guest waits to hear of credit.
    update: bool,
    /// The guest was asked for credit, or must be.
    ask: Ask,
    /// SHUTDOWN flags: what the guest has ended.
    guest_ended: u32,
    /// What the client has ended.
    host_ended: u32,
    /// What the guest was told of that.
    told_ended: u32,
    /// Bytes sent to the guest; the room it has in all; bytes it took.
    sent: u32,
    guest_room: u32,
    guest_taken: u32,
    /// Bytes that came from the guest, that the client took, and how much of
    /// those the guest was told of.
    received: u32,
    forwarded: u32,
    told_forwarded: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    No,
    Due,
    Done,
}

impl Connection {
    fn new(guest_cid: u64, ports: Ports, phase: Phase) -> Self {
        Connection {
            ports,
            guest_cid,
            phase,
            respond: false,
            update: false,
            ask: Ask::No,
            guest_ended: 0,
            host_ended: 0,
            told_ended: 0,
            sent: 0,
            guest_room: 0,
            guest_taken: 0,
            received: 0,
            forwarded: 0,
            told_forwarded: 0,
        }
    }

    /// A connection that a client of the host asks for.
    pub(super) fn to_guest(guest_cid: u64, ports: Ports) -> Self {
        Self::new(guest_cid, ports, Phase::Requesting)
    }

    /// A connection that the guest asked for and gets.
    pub(super) fn from_guest(request: &Header) -> Self {
        let ports = Ports {
            host: request.dst_port,
            guest: request.src_port,
        };
        let mut connection = Self::new(request.src_cid, ports, Phase::Established);
        connection.respond = true;
        connection.take_credit(request);
        connection
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// The guest does not know of it yet.
    pub(super) fn is_unrequested(&self) -> bool {
        self.phase == Phase::Requesting
    }

    pub(super) fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// The guest ended all of `flags`.
    pub(super) fn guest_ended(&self, flags: u32) -> bool {
        self.guest_ended & flags == flags
    }

    /// The client ended all of `flags`.
    pub(super) fn host_ended(&self, flags: u32) -> bool {
        self.host_ended & flags == flags
    }

    /// The guest knows that the client is gone, and owes a reset.
    pub(super) fn is_lingering(&self) -> bool {
        self.told_ended == SHUTDOWN_BOTH
    }

    /// Takes note of a packet from the guest.
    pub(super) fn receive(&mut self, header: &Header) -> Event {
        self.take_credit(header);
        match (self.phase, header.op) {
            (_, op::RST) => Event::Reset,
            (Phase::Requested, op::RESPONSE) => {
                self.phase = Phase::Established;
                Event::Accepted
            }
            (Phase::Requesting | Phase::Requested, _) => Event::Violation,
            (Phase::Established, op::RW) => self.receive_data(header.len),
            (Phase::Established, op::CREDIT_UPDATE) => Event::Nothing,
            (Phase::Established, op::CREDIT_REQUEST) => {
                self.update = true;
                Event::Nothing
            }
            (Phase::Established, op::SHUTDOWN) => {
                self.guest_ended |= header.flags & SHUTDOWN_BOTH;
                Event::Ended
            }
            (Phase::Established, _) => Event::Violation,
        }
    }

    fn receive_data(&mut self, len: u32) -> Event {
        let waiting = self.received.wrapping_sub(self.forwarded);
        if self.guest_ended(SHUTDOWN_SEND) || len > BUFFER_SIZE.saturating_sub(waiting) {
            return Event::Violation;
        }
        self.received = self.received.wrapping_add(len);
        Event::Data
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
        if self.credit() > 0 {
            self.ask = Ask::No;
        }
    }

    /// The client took `len` bytes of the guest's, or they were thrown away
    /// because it takes no more.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
        if self.forwarded.wrapping_sub(self.told_forwarded) >= UPDATE_AFTER {
            self.update = true;
        }
    }

    /// The client ended directions: it sends or receives no more.
    pub(super) fn end(&mut self, flags: u32) {
        self.host_ended |= flags;
    }

    /// Bytes that the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        // A guest that says it took more than it was sent has no room.
        self.guest_room
            .saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// Data from the client may go to the guest, credit permitting.
    pub(super) fn wants_data(&self) -> bool {
        self.phase == Phase::Established
            && !self.respond
            && !self.host_ended(SHUTDOWN_SEND)
            && !self.guest_ended(SHUTDOWN_RECEIVE)
    }

    /// The client has data and the guest no room: it is asked for credit once.
    pub(super) fn stall(&mut self) {
        if self.ask == Ask::No {
            self.ask = Ask::Due;
        }
    }

    /// Whether [`Self::next_control`] has a packet.
    pub(super) fn has_control(&self) -> bool {
        match self.phase {
            Phase::Requesting => true,
            Phase::Requested => false,
            Phase::Established => {
                self.respond
                    || self.update
                    || self.ask == Ask::Due
                    || self.host_ended != self.told_ended
            }
        }
    }

    /// The next packet without data for the guest.
    pub(super) fn next_control(&mut self) -> Option<Header> {
        if !self.has_control() {
            return None;
        }
        let (op, flags) = if self.phase == Phase::Requesting {
            self.phase = Phase::Requested;
            (op::REQUEST, 0)
        } else if self.respond {
            self.respond = false;
            (op::RESPONSE, 0)
        } else if self.host_ended != self.told_ended {
            self.told_ended = self.host_ended;
            (op::SHUTDOWN, self.host_ended)
        } else if self.ask == Ask::Due {
            self.ask = Ask::Done;
            (op::CREDIT_REQUEST, 0)
        } else {
            (op::CREDIT_UPDATE, 0)
        };
        Some(self.header(op, flags, 0))
    }

    /// The header of a packet with `len` bytes of data, which count as sent.
    pub(super) fn data(&mut self, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        self.header(op::RW, 0, len)
    }

    /// The packet that ends the connection at once.
    pub(super) fn reset(&mut self) -> Header {
        self.header(op::RST, 0, 0)
    }

    /// Every packet tells of credit.
    fn header(&mut self, op: u16, flags: u32, len: u32) -> Header {
        self.update = false;
        self.told_forwarded = self.forwarded;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: BUFFER_SIZE,
            fwd_cnt: self.forwarded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports {
        host: 1 << 30,
        guest: 1024,
    };

    fn from_guest(op: u16) -> Header {
        Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: PORTS.guest,
            dst_port: PORTS.host,
            kind: TYPE_STREAM,
            op,
            buf_alloc: 1000,
            ..Header::default()
        }
    }

    fn established() -> Connection {
        let mut connection = Connection::to_guest(3, PORTS);
        assert_eq!(
            connection.next_control().map(|header| header.op),
            Some(op::REQUEST)
        );
        assert_eq!(
            connection.receive(&from_guest(op::RESPONSE)),
            Event::Accepted
        );
        connection
    }

    #[test]
    fn a_response_before_the_request_is_a_violation() {
        let mut connection = Connection::to_guest(3, PORTS);
        assert_eq!(
            connection.receive(&from_guest(op::RESPONSE)),
            Event::Violation
        );
    }

    #[test]
    fn data_before_the_response_is_a_violation() {
        let mut connection = Connection::to_guest(3, PORTS);
        connection.next_control().expect("the request");
        assert_eq!(connection.receive(&from_guest(op::RW)), Event::Violation);
    }

    #[test]
    fn the_response_goes_before_data() {
        let mut connection = Connection::from_guest(&from_guest(op::REQUEST));
        assert!(!connection.wants_data());
        assert_eq!(
            connection.next_control().map(|header| header.op),
            Some(op::RESPONSE)
        );
        assert!(connection.wants_data());
        assert!(!connection.has_control());
    }

    #[test]
    fn credit_falls_with_data_and_rises_with_what_the_guest_took() {
        let mut connection = established();
        assert_eq!(connection.credit(), 1000);
        connection.data(600);
        assert_eq!(connection.credit(), 400);
        let mut update = from_guest(op::CREDIT_UPDATE);
        update.fwd_cnt = 500;
        connection.receive(&update);
        assert_eq!(connection.credit(), 900);
    }

    #[test]
    fn credit_survives_the_wrap_of_its_counters() {
        let mut connection = established();
        let mut taken = 0u32;
        for _ in 0..5 {
            connection.sent = connection.sent.wrapping_add(u32::MAX / 2 - 7);
            taken = taken.wrapping_add(u32::MAX / 2 - 7);
            let mut update = from_guest(op::CREDIT_UPDATE);
            update.fwd_cnt = taken;
            connection.receive(&update);
            assert_eq!(connection.credit(), 1000);
        }
    }

    #[test]
    fn a_guest_that_took_more_than_it_was_sent_has_no_credit() {
        let mut connection = established();
        let mut update = from_guest(op::CREDIT_UPDATE);
        update.fwd_cnt = 1;
        connection.receive(&update);
        assert_eq!(connection.credit(), 0);
    }

    #[test]
    fn more_than_the_advertised_room_is_a_violation() {
        let mut connection = established();
        let mut data = from_guest(op::RW);
        data.len = BUFFER_SIZE;
        assert_eq!(connection.receive(&data), Event::Data);
        data.len = 1;
        assert_eq!(connection.receive(&data), Event::Violation);
        connection.forward(1);
        assert_eq!(connection.receive(&data), Event::Data);
    }

    #[test]
    fn room_is_told_once_enough_came_free() {
        let mut connection = established();
        let mut data = from_guest(op::RW);
        data.len = BUFFER_SIZE;
        connection.receive(&data);
        connection.forward(UPDATE_AFTER - 1);
        assert!(!connection.has_control());
        connection.forward(1);
        let update = connection.next_control().expect("an update");
        assert_eq!(
            (update.op, update.fwd_cnt),
            (op::CREDIT_UPDATE, UPDATE_AFTER)
        );
        assert!(!connection.has_control());
    }

    #[test]
    fn a_credit_request_is_answered() {
        let mut connection = established();
        connection.receive(&from_guest(op::CREDIT_REQUEST));
        assert_eq!(
            connection.next_control().map(|header| header.op),
            Some(op::CREDIT_UPDATE)
        );
    }

    #[test]
    fn a_stalled_connection_asks_for_credit_once() {
        let mut connection = established();
        connection.data(1000);
        connection.stall();
        connection.stall();
        assert_eq!(
            connection.next_control().map(|header| header.op),
            Some(op::CREDIT_REQUEST)
        );
        connection.stall();
        assert!(!connection.has_control());
    }

    #[test]
    fn ends_are_told_as_they_come() {
        let mut connection = established();
        connection.end(SHUTDOWN_SEND);
        let first = connection.next_control().expect("a shutdown");
        assert_eq!((first.op, first.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
        assert!(!connection.is_lingering());
        connection.end(SHUTDOWN_RECEIVE);
        let second = connection.next_control().expect("a shutdown");
        assert_eq!((second.op, second.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
        assert!(connection.is_lingering());
    }

    #[test]
    fn data_after_the_guest_ended_sending_is_a_violation() {
        let mut connection = established();
        let mut end = from_guest(op::SHUTDOWN);
        end.flags = SHUTDOWN_SEND;
        assert_eq!(connection.receive(&end), Event::Ended);
        assert_eq!(connection.receive(&from_guest(op::RW)), Event::Violation);
    }

    #[test]
    fn nothing_is_sent_to_a_guest_that_ended_receiving() {
        let mut connection = established();
        let mut end = from_guest(op::SHUTDOWN);
        end.flags = SHUTDOWN_RECEIVE;
        connection.receive(&end);
        assert!(!connection.wants_data());
    }
}
