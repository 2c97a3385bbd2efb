//! The file system device (virtio 1.2, 5.11): directories and files of the host,
//! shared with the guest while it runs.
//!
//! virtio-mmio has no hot-plug, so there is one device, whose root is a
//! directory that nobody can write into; a share that a [`FsHandle`] attaches is
//! an entry of it. The guest speaks FUSE (`request` reads it, `server` answers).
//!
//! **Confinement.** A share begins at a descriptor that the caller opened; no
//! path is ever opened here. The guest names files by node, which is an O_PATH
//! descriptor, and by one component beneath a node (`host_file`). There is no
//! "..", and symbolic links are read, never followed: the guest resolves them in
//! its own tree. Devices, pipes and sockets of the host can be seen and not
//! opened. Nothing moves or is linked between shares. What is mounted beneath a
//! share is seen through it; a caller that wants later mounts of the host hidden
//! attaches a private copy.
//!
//! **Coherence.** The driver may cache neither names nor attributes, and reads
//! and writes pass its page cache by; only mappings of files use it. So a change
//! on either side is seen by the next system call on the other. File locks are
//! the guest's own: two pods that share a directory do not see each other's.
//!
//! **Bounds.** Nodes and handles hold descriptors; there are at most as many as
//! [`FsLimits`] says, and the driver gets ENFILE beyond.

mod abi;
mod attributes;
mod credentials;
mod device;
mod files;
mod host_file;
mod links;
mod names;
mod request;
mod server;
mod share;
mod table;

#[cfg(test)]
mod tests;

pub use device::Fs;
pub use share::{FsHandle, NamedShare, ShareError};
pub use table::{FsLimits, ShareAccess};
