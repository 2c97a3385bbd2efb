//! Spherule's own gRPC API: whole Kubernetes Pod manifests in, pods and their
//! output out. The messages, clients and servers of `proto/spherule/v1`.

mod json;

pub use json::to_json;

/// The package `spherule.v1`.
#[expect(missing_docs, reason = "generated; the proto file documents them")]
#[allow(clippy::all, clippy::pedantic, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("spherule.v1");
}

/// Name of the service's unix socket in the daemon's run directory.
pub const SOCKET: &str = "spherule.sock";

/// Bytes of an archive in one [`v1::ImportImageRequest`].
pub const IMPORT_CHUNK: usize = 1 << 20;
