//! The socket device (virtio 1.2, 5.10): streams between the guest's AF_VSOCK
//! sockets and unix sockets of the host. There is no vhost-vsock in it.
//!
//! * A host client connects to the device's unix socket, writes
//!   `CONNECT <port>\n` and gets `OK <host port>\n` once the guest has accepted;
//!   from then on bytes are the stream's. Where the guest refuses (nothing
//!   listens on the port, or not yet), the client's connection is closed without
//!   a word, and the client tries again when it likes. Before the guest's driver
//!   is there, and only then, a client waits: without limit, until the driver
//!   comes or the client goes.
//! * What a client said that went away is delivered before its end is told; a guest
//!   that takes none of it for ten seconds gets a reset instead.
//! * A guest that connects to CID 2, port N, reaches the unix socket
//!   `<socket path>_N`; where nobody listens it is refused.
//!
//! Layers, each ignorant of those above: `packet` (the header's bytes),
//! `connection` (state and credit of one connection, without any socket),
//! `unix` (the host's sockets), `endpoint` (a connection and its socket),
//! `muxer` (all of them), `device` (queues and guest memory).
//!
//! Memory is bounded: bytes for the guest are read from a unix socket only when
//! there is credit and a buffer of the guest's to read them into; bytes from
//! the guest wait in at most [`connection::BUFFER_SIZE`] per connection, which
//! is the credit the guest has; refusals waiting to be sent stop the reading of
//! further packets.

mod connection;
mod device;
mod endpoint;
mod muxer;
mod packet;
mod unix;

#[cfg(test)]
mod fake_guest;
#[cfg(test)]
mod tests;

pub use device::Vsock;
