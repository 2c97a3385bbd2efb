//! The server side of Spherule's own API: PodService and ImageService calls to
//! calls of the pod engine and the image store, one file a call: convert, one
//! call, convert back. Status codes are made in `status.rs` only.

mod convert;
mod cri_log;
mod images;
mod pods;
mod status;

pub use images::Images;
pub use pods::{ENDING, End, Facts, Pods};
