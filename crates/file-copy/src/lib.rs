//! Trees of files as a stream of items, and back: `spherule cp`. Both ends are this
//! crate, in the command line on the host and in the guest's agent.
//!
//! The sender is not trusted: [`Receiver`] writes beneath its destination only.
//! Names are single names, no link is followed below the destination, and only
//! files, directories and (where they are wanted) links are made. Each file appears
//! under its name once it is whole.

mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use receive::{Links, Receiver};
pub use send::send;

use rustix::io::Errno;
use std::path::PathBuf;

/// Most bytes of a file in one item.
pub const PIECE: usize = 64 << 10;
/// Deepest tree, in directories: each is a descriptor while it is read.
const MAX_DEPTH: usize = 128;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file or directory could not be read or made.
    #[error("{doing} {}", path.display())]
    File {
        /// "opening", "making", ...
        doing: &'static str,
        /// As far as it is known: below the destination, relative to it.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// A destination that ends with a slash, or gets a directory's content, and is no
    /// directory.
    #[error("{} is no directory; make it first, or name the copy", .0.display())]
    NoDirectory(PathBuf),
    /// The sender's items make no tree.
    #[error("the other side sent a tree that cannot be: {0}")]
    Broken(&'static str),
    /// The items ended before the tree did.
    #[error("the copy was cut off: not all files have come")]
    CutOff,
    /// Whoever takes the items is gone.
    #[error("nobody takes the files")]
    Unwanted(#[source] std::io::Error),
}
