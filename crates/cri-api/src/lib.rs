//! The Kubernetes Container Runtime Interface, v1: the messages, clients and
//! servers of `proto/cri`.

mod auth;

/// The package `runtime.v1`.
#[expect(missing_docs, reason = "generated; the proto files document them")]
#[allow(clippy::all, clippy::pedantic, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The encoded `google.protobuf.FileDescriptorSet` of [`v1`], for reflection
/// and for printing messages as JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
