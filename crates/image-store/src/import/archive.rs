//! The files of an archive, spooled to `tmp` under their digests.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
};

use super::ArchiveError;
use crate::{
    Digest, ImageError,
    blobs::{BlobWriter, Directories, Kind, StagedBlob, verify},
    config::ImageLimits,
    decompress::decompress,
    layer::{MemberKind, TarReader, components, show},
    manifest::Descriptor,
};

const MAX_MEMBERS: usize = 100_000;
const MAX_LINKS: usize = 8;
const BUFFER_LEN: usize = 256 << 10;

enum Entry {
    File(Digest),
    /// To another path of the archive: older versions of docker save a layer
    /// that several images share once.
    Link(String),
}

pub(super) struct Archive {
    entries: HashMap<String, Entry>,
    blobs: HashMap<Digest, Blob>,
}

/// A file of the archive: in `tmp`, or in the store with an image before.
struct Blob {
    size: u64,
    place: Place,
}

enum Place {
    Staged(StagedBlob),
    Store(File),
}

impl Archive {
    pub(super) fn read(
        reader: impl Read + Send,
        dirs: &Directories,
        limits: &ImageLimits,
    ) -> Result<Self, ImageError> {
        let mut archive = Self {
            entries: HashMap::new(),
            blobs: HashMap::new(),
        };
        let reader = BufReader::with_capacity(BUFFER_LEN, reader);
        let reader = decompress(reader).map_err(ArchiveError::Read)?;
        let mut tar = TarReader::new(BufReader::with_capacity(BUFFER_LEN, reader));
        let mut after = "the start".to_owned();
        let mut bytes_left = limits.max_compressed_bytes;
        loop {
            let failed = |source| ArchiveError::Tar {
                after: after.clone(),
                source,
            };
            let Some(member) = tar.next().map_err(failed)? else {
                break;
            };
            if archive.entries.len() >= MAX_MEMBERS {
                return Err(ArchiveError::TooManyMembers { limit: MAX_MEMBERS }.into());
            }
            let Some(path) = clean(&member.path) else {
                continue;
            };
            let entry = match member.kind {
                MemberKind::File => {
                    if member.size > bytes_left {
                        return Err(ImageError::TooLarge {
                            what: format!("the archive with its member {path:?}"),
                            size: limits.max_compressed_bytes - bytes_left + member.size,
                            limit: limits.max_compressed_bytes,
                        });
                    }
                    bytes_left -= member.size;
                    let blob = spool(&mut tar, dirs, &path)?;
                    let digest = blob.digest;
                    let blob = Blob {
                        size: blob.size,
                        place: Place::Staged(blob),
                    };
                    archive.blobs.entry(digest).or_insert(blob);
                    Entry::File(digest)
                }
                MemberKind::HardLink => match clean(&member.link) {
                    Some(target) => Entry::Link(target),
                    None => return Err(ArchiveError::Link { path }.into()),
                },
                MemberKind::Symlink => {
                    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let target = [dir.as_bytes(), b"/", &member.link].concat();
                    match clean(&target).filter(|_| !member.link.starts_with(b"/")) {
                        Some(target) => Entry::Link(target),
                        None => return Err(ArchiveError::Link { path }.into()),
                    }
                }
                _ => continue,
            };
            after = show(path.as_bytes());
            archive.entries.insert(path, entry);
        }
        // Nothing is read behind the end mark: of a pipe the rest may be long.
        Ok(archive)
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// The digest of the file at that path.
    pub(super) fn digest(&self, path: &str) -> Result<Digest, ArchiveError> {
        let mut at = path;
        for _ in 0..MAX_LINKS {
            match self.entries.get(at) {
                Some(Entry::File(digest)) => return Ok(*digest),
                Some(Entry::Link(target)) => at = target,
                None => {
                    return Err(ArchiveError::Missing {
                        path: at.to_owned(),
                    });
                }
            }
        }
        Err(ArchiveError::Link {
            path: path.to_owned(),
        })
    }

    /// The file that a descriptor of an OCI layout means, checked against it.
    pub(super) fn resolve(&self, descriptor: &Descriptor) -> Result<Digest, ImageError> {
        let found = self.digest(&format!("blobs/sha256/{}", descriptor.digest.hex()))?;
        let size = self.blobs.get(&found).map_or(0, |blob| blob.size);
        verify(descriptor.digest, descriptor.size, found, size)?;
        Ok(found)
    }

    /// A whole document, if it is not too large.
    pub(super) fn document(
        &self,
        what: &str,
        digest: &Digest,
        limits: &ImageLimits,
    ) -> Result<Vec<u8>, ImageError> {
        let limit = limits.max_document_bytes;
        let blob = self.blob(digest)?;
        if blob.size > limit {
            let what = format!("{what} {digest}");
            return Err(ImageError::TooLarge {
                what,
                size: blob.size,
                limit,
            });
        }
        let mut bytes = Vec::new();
        self.open(digest)?
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(ArchiveError::Read)?;
        Ok(bytes)
    }

    /// The file at that path, as JSON.
    pub(super) fn json<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        limits: &ImageLimits,
    ) -> Result<T, ImageError> {
        let bytes = self.document("the archive's", &self.digest(path)?, limits)?;
        let parsed = serde_json::from_slice(&bytes);
        Ok(parsed.map_err(|source| ArchiveError::Json {
            path: path.to_owned(),
            source,
        })?)
    }

    /// The content of that digest, from its beginning.
    pub(super) fn open(&self, digest: &Digest) -> Result<File, ImageError> {
        match &self.blob(digest)?.place {
            Place::Staged(blob) => blob.open(),
            Place::Store(file) => {
                use std::io::Seek;
                let mut file = file.try_clone().map_err(ArchiveError::Read)?;
                file.rewind().map_err(ArchiveError::Read)?;
                Ok(file)
            }
        }
    }

    /// Moves a file out for the store to keep it; `None` if an image before did.
    pub(super) fn take(
        &mut self,
        digest: &Digest,
        dirs: &Directories,
    ) -> Result<Option<StagedBlob>, ImageError> {
        let Some(blob) = self.blobs.get_mut(digest) else {
            return Ok(None);
        };
        let Place::Staged(staged) = &blob.place else {
            return Ok(None);
        };
        // Open still, for the next image of the archive that has it.
        let file = match dirs.open_file(Kind::Blob, digest)? {
            Some(file) => file,
            None => staged.open()?,
        };
        match std::mem::replace(&mut blob.place, Place::Store(file)) {
            Place::Staged(staged) => Ok(Some(staged)),
            Place::Store(_) => Ok(None),
        }
    }

    fn blob(&self, digest: &Digest) -> Result<&Blob, ArchiveError> {
        self.blobs.get(digest).ok_or_else(|| ArchiveError::Missing {
            path: digest.to_string(),
        })
    }
}

fn spool<R: std::io::BufRead>(
    tar: &mut TarReader<R>,
    dirs: &Directories,
    path: &str,
) -> Result<StagedBlob, ImageError> {
    let mut writer = BlobWriter::new(dirs)?;
    loop {
        let part = tar.fill_data().map_err(|source| ArchiveError::Tar {
            after: path.to_owned(),
            source,
        })?;
        if part.is_empty() {
            return Ok(writer.finish());
        }
        writer.append(part)?;
        let len = part.len();
        tar.consume(len);
    }
}

/// A path in one form; `None` for one that no image archive needs.
fn clean(path: &[u8]) -> Option<String> {
    let names = components(path).ok()?;
    let path = String::from_utf8(names.join(&b'/')).ok()?;
    (!path.is_empty()).then_some(path)
}
