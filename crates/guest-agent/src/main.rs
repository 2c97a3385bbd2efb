//! spherule-init: PID 1 of a pod's guest. Prepares the guest, listens on
//! vsock ports for the host (crate `guest-api`), and runs the pod's containers.
//!
//! One process, one thread, one epoll loop ([`server`]); it forks a first process
//! for each container ([`container`]) and one for each exec session ([`exec`]). What happens, in order: [`boot`]
//! mounts; [`server`] accepts; [`sandbox`] sets up what the containers share;
//! containers come and go; [`shutdown`] ends the VM. If PID 1 cannot go on, it
//! says why in the kernel's log and exits, and the kernel panics: the host sees
//! both.

mod agent;
mod block_volumes;
mod boot;
mod cgroup;
mod clock;
mod connection;
mod container;
mod disks;
mod error;
mod events;
mod exec;
mod forward;
mod fs_mount;
mod journals;
mod layout;
mod listener;
mod log;
mod network;
mod pid_namespace;
mod poller;
mod rooted;
mod sandbox;
mod server;
mod shutdown;
mod stats;
mod stream;
mod sys;
mod users;
mod volumes;

use agent::Agent;
use error::{AgentError, Doing};
use guest_api::{CONTROL_PORT, EXEC_PORT, FORWARD_PORT, STREAM_PORT};
use listener::Listener;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
use server::{Port, Server};
use std::process::ExitCode;

fn main() -> ExitCode {
    let started_ns = clock::boot_time_ns();
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        eprintln!("spherule-init is PID 1 of a Spherule guest and runs nowhere else");
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|panic| log::fatal(&panic.to_string())));
    if let Err(e) = run(started_ns) {
        log::fatal(&format!("cannot go on: {e}"));
    }
    // PID 1 must not end: the kernel panics, after its log has said why.
    ExitCode::FAILURE
}

fn run(started_ns: u64) -> Result<(), AgentError> {
    boot::prepare()?;
    let signals = child_signals().doing(|| "watching for ended processes".into())?;
    let mut server =
        Server::new(Agent::new(started_ns), signals).doing(|| "making the event loop".into())?;
    for (number, port) in [
        (CONTROL_PORT, Port::Control),
        (STREAM_PORT, Port::Stream),
        (EXEC_PORT, Port::Exec),
        (FORWARD_PORT, Port::Forward),
    ] {
        Listener::bind(number)
            .and_then(|listener| server.listen(listener, port))
            .doing(|| format!("listening on vsock port {number}"))?;
    }
    log::info("ready");
    server.run().doing(|| "waiting for events".into())?;
    shutdown::end_guest();
    Ok(())
}

/// SIGCHLD as a descriptor.
fn child_signals() -> Result<SignalFd, Errno> {
    let to_errno = |e: nix::errno::Errno| Errno::from_raw_os_error(e as i32);
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(to_errno)?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(to_errno)
}
