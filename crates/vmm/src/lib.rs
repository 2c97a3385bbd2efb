//! spherule-vmm: one process, one micro-VM.
//!
//! The daemon starts it with a directory, connects to the control socket there
//! (`server`, `session`) and sends a boot request with descriptors (`builder`).
//! An engine runs the guest (`engine`); `lifecycle` knows what state it is in
//! and how it ended; `logs` copies the containers' output into files. The
//! process outlives the daemon and ends with its guest.

mod builder;
mod engine;
mod exit_file;
mod kernel_log;
mod lifecycle;
mod logs;
mod probe;
mod server;
mod session;
mod termination;

pub use probe::probe;
pub use server::{ServeError, serve};
