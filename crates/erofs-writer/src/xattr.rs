//! Extended attributes in the form EROFS stores: a namespace number, the rest
//! of the name, a value.

use crate::WriteError;

/// Namespaces that EROFS knows, and their numbers. For the ACLs the number is
/// the whole name.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Header of an entry: name length, namespace, value length.
const ENTRY_HEADER_LEN: usize = 4;

/// One extended attribute of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    index: u8,
    suffix: Box<[u8]>,
    value: Box<[u8]>,
}

impl Xattr {
    /// An attribute by its full name, such as `user.mime_type`; `Ok(None)` for
    /// a namespace that no Linux file system of this kind stores.
    ///
    /// # Errors
    /// [`WriteError::BadXattr`] for a name or value of impossible length.
    pub fn new(name: &[u8], value: &[u8]) -> Result<Option<Self>, WriteError> {
        let found = PREFIXES
            .iter()
            .find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)));
        let Some((index, suffix)) = found else {
            return Ok(None);
        };
        let is_acl = matches!(index, 2 | 3);
        if is_acl && !suffix.is_empty() {
            return Ok(None);
        }
        let bad_name = (!is_acl && suffix.is_empty()) || name.len() > 255 || suffix.contains(&0);
        if bad_name || value.len() > usize::from(u16::MAX) {
            let name = name[..name.len().min(255)].escape_ascii().to_string();
            return Err(WriteError::BadXattr {
                name,
                value_len: value.len(),
            });
        }
        Ok(Some(Self {
            index,
            suffix: suffix.into(),
            value: value.into(),
        }))
    }

    /// Whether both are the same attribute (their values may differ).
    pub fn same_name(&self, other: &Self) -> bool {
        (self.index, &self.suffix) == (other.index, &other.suffix)
    }

    /// Bytes of memory this attribute takes, about.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.suffix.len() + self.value.len()
    }

    /// Bytes of the entry on disk, padded to four.
    pub(crate) fn disk_len(&self) -> usize {
        (ENTRY_HEADER_LEN + self.suffix.len() + self.value.len()).next_multiple_of(4)
    }

    /// Appends the entry as it stands on disk.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.disk_len();
        // Both lengths were checked when the attribute was made.
        out.push(u8::try_from(self.suffix.len()).unwrap_or(u8::MAX));
        out.push(self.index);
        out.extend_from_slice(
            &u16::try_from(self.value.len())
                .unwrap_or(u16::MAX)
                .to_le_bytes(),
        );
        out.extend_from_slice(&self.suffix);
        out.extend_from_slice(&self.value);
        out.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_get_their_numbers() {
        for (name, index, suffix) in [
            ("user.a", 1, "a"),
            ("system.posix_acl_access", 2, ""),
            ("system.posix_acl_default", 3, ""),
            ("trusted.overlay.opaque", 4, "overlay.opaque"),
            ("security.capability", 6, "capability"),
        ] {
            let xattr = Xattr::new(name.as_bytes(), b"v").unwrap().unwrap();
            assert_eq!((xattr.index, &*xattr.suffix), (index, suffix.as_bytes()));
        }
    }

    #[test]
    fn foreign_namespaces_are_passed_over() {
        for name in [
            "com.apple.quarantine",
            "system.nfs4_acl",
            "",
            "system.posix_acl_accessory",
        ] {
            assert_eq!(Xattr::new(name.as_bytes(), b"v").unwrap(), None, "{name}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let long_name = format!("user.{}", "n".repeat(251));
        assert!(Xattr::new(long_name.as_bytes(), b"").is_err());
        assert!(Xattr::new(b"user.", b"").is_err());
        assert!(Xattr::new(b"user.a", &vec![0; 65536]).is_err());
        assert!(Xattr::new(b"user.a", &vec![0; 65535]).unwrap().is_some());
    }

    #[test]
    fn entry_is_padded_to_four_bytes() {
        let xattr = Xattr::new(b"user.ab", b"xyz").unwrap().unwrap();
        let mut out = Vec::new();
        xattr.append_to(&mut out);
        assert_eq!(out, [2, 1, 3, 0, b'a', b'b', b'x', b'y', b'z', 0, 0, 0]);
        assert_eq!(out.len(), xattr.disk_len());
    }
}
