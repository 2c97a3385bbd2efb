//! Applies a layer, a tar archive, to the image being built.
//!
//! The result is what containerd's overlay snapshotter would show: whiteouts
//! act on the layers below only, a directory of two layers is merged, anything
//! else replaces what had its name, missing parents are made. Where containerd
//! would leave the image (`..`), or where a hard link finds no target, the
//! layer is refused. Owners, modes and times of a hard link's header are not
//! applied; they repeat those of the file.

mod sparse;
mod tar;
mod whiteout;

use std::io::BufRead;

use erofs_writer::{Attributes, Builder, FileData, NodeKind, Timestamp, WriteError, Xattr};

pub use sparse::SparseError;
pub use tar::TarError;
pub use whiteout::PathError;

pub(crate) use tar::{Member, MemberKind, TarReader};
use whiteout::Action;
pub(crate) use whiteout::components;

/// Why a layer is refused; the member is named where there is one.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive itself cannot be read on.
    #[error("after member {after:?}")]
    Tar {
        /// The member before, or "the start".
        after: String,
        /// The reason.
        #[source]
        source: TarError,
    },
    /// A member whose path is not acceptable.
    #[error("member {member:?}")]
    Path {
        /// Its path.
        member: String,
        /// The reason.
        #[source]
        source: PathError,
    },
    /// A hard link whose target's path is not acceptable.
    #[error("the target {target:?} of the hard link {member:?}")]
    LinkPath {
        /// Its path.
        member: String,
        /// The path it links to.
        target: String,
        /// The reason.
        #[source]
        source: PathError,
    },
    /// A member that cannot be put into the image.
    #[error("member {member:?}")]
    Write {
        /// Its path.
        member: String,
        /// The reason.
        #[source]
        source: WriteError,
    },
    /// An owner beyond 32 bits.
    #[error("member {member:?} has an owner or group number over 32 bits")]
    Owner {
        /// Its path.
        member: String,
    },
    /// More members than the limit on all layers of an image.
    #[error("the layers of the image have more than {limit} members")]
    TooManyMembers {
        /// The limit.
        limit: u64,
    },
}

impl LayerError {
    /// The image file's error below, if that is the cause.
    pub(crate) fn write_error(&self) -> Option<&WriteError> {
        match self {
            Self::Write { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Applies the archive in `input` on top of what `builder` has. Each member is
/// counted against `members_left`. Returns `input`, read to its end.
pub(crate) fn apply<R: BufRead>(
    builder: &mut Builder,
    input: R,
    members_left: &mut u64,
    limit: u64,
) -> Result<R, LayerError> {
    builder.begin_layer();
    let mut reader = TarReader::new(input);
    let mut after = "the start".to_owned();
    loop {
        let failed = |source| LayerError::Tar {
            after: after.clone(),
            source,
        };
        let Some(member) = reader.next().map_err(failed)? else {
            break;
        };
        *members_left = members_left
            .checked_sub(1)
            .ok_or(LayerError::TooManyMembers { limit })?;
        apply_member(builder, &mut reader, &member)?;
        after.clear();
        after.push_str(&show(&member.path));
    }
    reader
        .finish()
        .map_err(|source| LayerError::Tar { after, source })
}

fn apply_member<R: BufRead>(
    builder: &mut Builder,
    reader: &mut TarReader<R>,
    member: &Member,
) -> Result<(), LayerError> {
    let name = || show(&member.path);
    let written = |source| LayerError::Write {
        member: name(),
        source,
    };
    let path = match whiteout::action(&member.path).map_err(|source| LayerError::Path {
        member: name(),
        source,
    })? {
        Action::Ignore => return Ok(()),
        Action::Remove(path) => return builder.whiteout(&path).map_err(written),
        Action::Empty(path) => return builder.opaque(&path).map_err(written),
        Action::Make(path) => path,
    };
    let attributes = attributes(member)?;
    let (major, minor) = member.device;
    match member.kind {
        MemberKind::File => {
            let data = copy_contents(builder, reader, member)?;
            builder.insert_file(&path, attributes, data)
        }
        MemberKind::Directory => builder.insert_dir(&path, attributes),
        MemberKind::Symlink => builder.insert_symlink(&path, attributes, &member.link),
        MemberKind::HardLink => {
            let target =
                whiteout::components(&member.link).map_err(|source| LayerError::LinkPath {
                    member: name(),
                    target: show(&member.link),
                    source,
                })?;
            builder.insert_hardlink(&path, &target)
        }
        MemberKind::Fifo => builder.insert_node(&path, attributes, NodeKind::Fifo),
        MemberKind::CharDevice => {
            builder.insert_node(&path, attributes, NodeKind::CharDevice { major, minor })
        }
        MemberKind::BlockDevice => {
            builder.insert_node(&path, attributes, NodeKind::BlockDevice { major, minor })
        }
    }
    .map_err(written)
}

/// Streams a file's contents from the archive into the image.
fn copy_contents<R: BufRead>(
    builder: &mut Builder,
    reader: &mut TarReader<R>,
    member: &Member,
) -> Result<FileData, LayerError> {
    let name = || show(&member.path);
    let written = |source| LayerError::Write {
        member: name(),
        source,
    };
    let mut file = builder.begin_file().map_err(written)?;
    let whole = [sparse::Segment {
        offset: 0,
        len: member.size,
    }];
    let segments = member.sparse.as_deref().unwrap_or(&whole);
    let mut position = 0;
    for segment in segments {
        file.append_zeros(segment.offset - position)
            .map_err(written)?;
        let mut left = segment.len;
        while left > 0 {
            let part = reader.fill_data().map_err(|source| LayerError::Tar {
                after: name(),
                source,
            })?;
            let len = usize::try_from(left).map_or(part.len(), |left| left.min(part.len()));
            file.append(&part[..len]).map_err(written)?;
            reader.consume(len);
            left -= len as u64;
        }
        position = segment.offset + segment.len;
    }
    file.append_zeros(member.size - position).map_err(written)?;
    Ok(file.finish())
}

fn attributes(member: &Member) -> Result<Attributes, LayerError> {
    let owner = || LayerError::Owner {
        member: show(&member.path),
    };
    let mut xattrs = Vec::new();
    for (name, value) in &member.xattrs {
        // As containerd does: trusted attributes would let an image forge what
        // overlayfs keeps in them.
        if name.starts_with(b"trusted.") {
            continue;
        }
        let xattr = Xattr::new(name, value).map_err(|source| LayerError::Write {
            member: show(&member.path),
            source,
        })?;
        xattrs.extend(xattr);
    }
    let (seconds, nanoseconds) = member.mtime;
    let mtime = if seconds < 0 {
        Timestamp::default()
    } else {
        Timestamp {
            seconds,
            nanoseconds,
        }
    };
    Ok(Attributes {
        // The mask leaves twelve bits.
        permissions: u16::try_from(member.mode & 0o7777).unwrap_or(0),
        uid: u32::try_from(member.uid).map_err(|_| owner())?,
        gid: u32::try_from(member.gid).map_err(|_| owner())?,
        mtime,
        xattrs,
    })
}

/// A path for messages: escaped, and cut where it is very long.
pub(crate) fn show(path: &[u8]) -> String {
    const MOST: usize = 400;
    let cut = path.len() > MOST;
    let shown = path[..path.len().min(MOST)].escape_ascii().to_string();
    if cut { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests;
