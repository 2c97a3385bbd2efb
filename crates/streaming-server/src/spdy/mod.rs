//! The server's side of SPDY/3.1, as Kubernetes' clients speak it (moby/spdystream).
//!
//! Those clients open streams and never answer to flow control: they send no
//! WINDOW_UPDATE and heed none. So the windows of a client bind this server from
//! the first sign that the client keeps them; until then TCP alone holds it back.
//! The other way WINDOW_UPDATEs are sent as data is taken, and who ignores them
//! finds the connection unread once a stream's room is full.

mod connection;
mod dictionary;
mod frame;
mod headers;
mod reader;
mod streams;
mod writer;

pub(crate) use connection::{NewStream, serve};
pub(crate) use frame::Reset;
#[cfg(test)]
pub(crate) use headers::{HeaderReader, HeaderWriter, Headers};
#[cfg(test)]
pub(crate) use reader::scan;
pub(crate) use writer::Output;
