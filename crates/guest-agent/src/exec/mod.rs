//! Exec sessions: a process in a running container, one to a connection.
//!
//! The host connects to the exec port and sends a request ([`request`]); a child
//! of the agent joins the container and becomes the program ([`child`]); from
//! then on frames carry its input, output and exit ([`session`]). Every session
//! has a cgroup of its own below its container's. Whatever is in it when the
//! connection ends before the process is killed, in whichever process session or
//! group it may be; what an ended process leaves behind goes on, in the container's.
//! Instead of a program the child may copy files ([`copy`]).

pub(crate) mod child;
mod copy;
pub(crate) mod request;
pub(crate) mod session;
