//! Makes small OCI image archives, for the demo, the tests and the benchmarks:
//! real images, built here because no registry can be reached from everywhere.

mod archive;
mod busybox;
mod layer;

pub use archive::{Compression, ImageBuilder};
pub use busybox::{BUSYBOX, busybox_image};
pub use layer::Layer;
