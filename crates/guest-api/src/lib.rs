//! The wire between the host and spherule-init, PID 1 of a pod's guest: its
//! messages and its vsock ports. The host connects, the guest listens.

/// Messages of `proto/spherule/guest/v1/guest.proto`.
#[expect(missing_docs, reason = "generated; the proto file documents them")]
#[allow(clippy::doc_markdown, clippy::large_enum_variant)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/spherule.guest.v1.rs"));
}

/// The vsock port of the control connections.
pub const CONTROL_PORT: u32 = 1024;
/// The vsock port of the stream connections (a container's stdin, stdout, stderr).
pub const STREAM_PORT: u32 = 1025;
/// The vsock port of exec sessions (a process in a running container each).
pub const EXEC_PORT: u32 = 1026;
/// The vsock port of connections to ports of the pod.
pub const FORWARD_PORT: u32 = 1027;
/// The guest's vsock address. Each VM has its own vsock, so all have this one.
pub const GUEST_CID: u32 = 3;
