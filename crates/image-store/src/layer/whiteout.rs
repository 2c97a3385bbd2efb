//! Names and paths of members: what they mean to a layer.

/// Begins the name of a member that deletes another one.
const WHITEOUT: &[u8] = b".wh.";
/// Begins names that aufs kept for itself.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Hides all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a member's path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `..` beyond the root of the image.
    #[error("its path leads out of the image with \"..\"")]
    Traversal,
    /// A name over 255 bytes.
    #[error("a name in its path is longer than 255 bytes")]
    LongName,
    /// A whiteout that names nothing.
    #[error("it is a whiteout for no file")]
    Whiteout,
}

/// What a member asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<'p> {
    /// The root directory itself, or aufs's own files: nothing.
    Ignore,
    /// To be made, at that path.
    Make(Vec<&'p [u8]>),
    /// To remove from the layers below.
    Remove(Vec<&'p [u8]>),
    /// To empty that directory of the layers below.
    Empty(Vec<&'p [u8]>),
}

/// Splits a path into names, `.` and `..` resolved; the root is the image's,
/// with or without a slash in front.
///
/// `..` is resolved by name, as Go's `filepath.Clean` does before containerd
/// looks at links; but where that would stop at the root this refuses.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(PathError::Traversal)?;
            }
            _ if name.len() > 255 => return Err(PathError::LongName),
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// Finds out what a member of that path asks for.
pub(super) fn action(path: &[u8]) -> Result<Action<'_>, PathError> {
    let mut names = components(path)?;
    let Some(name) = names.last().copied() else {
        return Ok(Action::Ignore);
    };
    if name == OPAQUE {
        names.pop();
        return Ok(Action::Empty(names));
    }
    if names
        .first()
        .is_some_and(|first| first.starts_with(WHITEOUT_META))
    {
        return Ok(Action::Ignore);
    }
    if let Some(victim) = name.strip_prefix(WHITEOUT) {
        if matches!(victim, b"" | b"." | b"..") {
            return Err(PathError::Whiteout);
        }
        names.pop();
        names.push(victim);
        return Ok(Action::Remove(names));
    }
    Ok(Action::Make(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Vec<&[u8]> {
        path.split('/').map(str::as_bytes).collect()
    }

    #[test]
    fn paths_are_cleaned() {
        assert_eq!(components(b"./a//b/./c/").unwrap(), names("a/b/c"));
        assert_eq!(components(b"/etc/passwd").unwrap(), names("etc/passwd"));
        assert_eq!(components(b"a/../b").unwrap(), names("b"));
        assert_eq!(components(b"./").unwrap(), names("a")[..0]);
    }

    #[test]
    fn paths_out_of_the_image_are_refused() {
        for path in [&b".."[..], b"../x", b"a/../../x", b"/../x", b"./../x"] {
            assert_eq!(
                components(path),
                Err(PathError::Traversal),
                "{}",
                path.escape_ascii()
            );
        }
        assert_eq!(components(&[b'x'; 256]), Err(PathError::LongName));
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        assert_eq!(action(b"a/.wh.b").unwrap(), Action::Remove(names("a/b")));
        assert_eq!(action(b".wh.b").unwrap(), Action::Remove(names("b")));
        assert_eq!(
            action(b"a/.wh..wh..opq").unwrap(),
            Action::Empty(names("a"))
        );
        assert_eq!(action(b".wh..wh..opq").unwrap(), Action::Empty(Vec::new()));
        assert_eq!(
            action(b"a/b.wh.c").unwrap(),
            Action::Make(names("a/b.wh.c"))
        );
        assert_eq!(action(b".wh..wh.plnk/4").unwrap(), Action::Ignore);
        assert_eq!(action(b"./").unwrap(), Action::Ignore);
        for path in [&b".wh."[..], b"a/.wh..", b"a/.wh..."] {
            assert_eq!(
                action(path),
                Err(PathError::Whiteout),
                "{}",
                path.escape_ascii()
            );
        }
    }
}
