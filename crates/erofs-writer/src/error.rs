//! What can go wrong while an image is written.

use std::io;

/// A failed step of writing an image; paths are shown with escapes.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image file could not be written (a full disk, for example).
    #[error("cannot {operation} the image file")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A limit of [`crate::Limits`] or of the format was reached.
    #[error("{what} exceed the limit of {limit}")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An empty name, one with a slash or a zero byte, or longer than 255 bytes.
    #[error("the name {name:?} is empty, too long (over 255 bytes) or has a forbidden byte")]
    BadName {
        /// The name, escaped.
        name: String,
    },
    /// A path through something that this layer made and that is no directory.
    #[error("{path} is not a directory, yet has members below it")]
    NotADirectory {
        /// The path, escaped.
        path: String,
    },
    /// A path through more symbolic links than anybody needs.
    #[error("too many symbolic links (a loop?) on the way to {path}")]
    LinkLoop {
        /// The path, escaped.
        path: String,
    },
    /// Directories nested deeper than a path can name.
    #[error("directories nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The root directory can be neither replaced nor removed.
    #[error("the root directory cannot be replaced")]
    Root,
    /// A hard link to something that is not there.
    #[error("the hard link's target {target} does not exist")]
    LinkTargetMissing {
        /// The target's path, escaped.
        target: String,
    },
    /// A hard link to a directory.
    #[error("the hard link's target {target} is a directory")]
    LinkToDirectory {
        /// The target's path, escaped.
        target: String,
    },
    /// A symbolic link whose target is empty, has a zero byte or is over 4095 bytes.
    #[error("the symbolic link's target is empty, has a zero byte or is over 4095 bytes")]
    BadSymlink,
    /// A device number outside of 12 bits (major) and 20 bits (minor).
    #[error("device number {major}:{minor} is out of range")]
    BadDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An extended attribute with an empty or too long name or value.
    #[error(
        "the extended attribute {name:?} has an empty or too long name, \
         or a value of {value_len} bytes (the most is 65535)"
    )]
    BadXattr {
        /// The attribute's name, escaped.
        name: String,
        /// Length of its value, in bytes.
        value_len: usize,
    },
    /// All extended attributes of one inode together are too large.
    #[error("the extended attributes of one file are larger than 256 KiB")]
    XattrsTooLarge,
}

impl WriteError {
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }

    /// Whether the cause is a full disk or quota on the host.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// A path as text for messages: `/a/b`, bytes that are not printable escaped.
pub(crate) fn show_path(components: &[&[u8]]) -> String {
    if components.is_empty() {
        return "/".to_owned();
    }
    components
        .iter()
        .map(|name| format!("/{}", name.escape_ascii()))
        .collect()
}
