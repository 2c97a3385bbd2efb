//! The server of what a kubelet proxies to: exec, attach and port-forward, by SPDY
//! and by WebSocket.
//!
//! A request of the CRI is kept behind a URL with a token ([`StreamUrls`]); whoever
//! comes with the URL is served once, from a [`Backend`]. A connection is one task:
//! it ends with the work, and takes the work with it when the client is gone. No
//! queue grows beyond a bound: who does not read makes those wait who write, and none
//! besides.

mod backend;
mod backlog;
mod command;
mod ending;
mod forward;
mod input;
mod limits;
mod negotiate;
mod output;
mod peer;
mod place;
mod resize;
mod respond;
mod room;
mod server;
mod session;
mod spdy;
mod spill;
mod status;
mod tls;
mod tokens;
mod urls;
mod websocket;

#[cfg(test)]
mod tests;

pub use backend::{
    AttachRequest, Backend, Connection, Ended, ExecRequest, Failure, Input, Inputs, Output,
    Outputs, PortForwardRequest, Session, Streams, TerminalSize,
};
pub use limits::Limits;
pub use server::{Config, StreamingServer};
pub use tls::{TlsError, tls_config};
pub use tokens::TooMany;
pub use urls::StreamUrls;
