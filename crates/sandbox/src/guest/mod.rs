//! The host's side of the wire to spherule-init. The guest is hostile: frames,
//! texts and lists from it are bounded, and nothing it says is trusted further
//! than its own VM.

mod client;
mod exec;
#[cfg(test)]
pub(crate) mod fake_agent;
mod forward;
mod stream;
mod vsock;

pub(crate) use client::{GuestClient, GuestError, fill, printable};
pub(crate) use exec::{ExecReader, ExecStream, ExecWriter};
pub(crate) use forward::open as open_forward;
pub(crate) use stream::open as open_stdin;
pub(crate) use vsock::connect;
