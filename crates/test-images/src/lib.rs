//! Makes small OCI images, for the demo, the tests and the benchmarks:
//! real images, built here because no registry can be reached from everywhere.

mod archive;
mod busybox;
mod guarded;
mod layer;
mod noise;
mod peer;
mod registry;
mod tokens;

pub use archive::{Compression, ImageBuilder};
pub use busybox::{BUSYBOX, busybox_image};
pub use guarded::{Guard, GuardedRegistry, PASSWORD, USER};
pub use layer::Layer;
pub use noise::noise;
pub use peer::{compile_peer, peer_image};
pub use registry::{REGISTRY, Registry, RegistryError};
pub use tokens::{IDENTITY_TOKEN, PUBLIC, TokenServer};
