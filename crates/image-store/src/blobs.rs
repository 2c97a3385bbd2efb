//! Files of the store by digest. A file gets its final name only when it is
//! complete and on the disk; until then it is in `tmp`, which every start empties.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

use crate::{Digest, ImageError};

/// The directories of the store.
#[derive(Debug)]
pub(crate) struct Directories {
    root: PathBuf,
}

/// The two kinds of files that the store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A manifest, configuration or layer, as it was transferred.
    Blob,
    /// An image's file system, named by its chain of layers.
    Rootfs,
}

impl Directories {
    /// Makes what is missing and removes what interrupted work left in `tmp`.
    pub(crate) fn open(root: PathBuf) -> Result<Self, ImageError> {
        let dirs = Self { root };
        for dir in [dirs.dir(Kind::Blob), dirs.dir(Kind::Rootfs), dirs.tmp()] {
            fs::create_dir_all(&dir).map_err(ImageError::io("make the directory", &dir))?;
        }
        let tmp = dirs.tmp();
        for entry in fs::read_dir(&tmp).map_err(ImageError::io("list", &tmp))? {
            let path = entry.map_err(ImageError::io("list", &tmp))?.path();
            let removed = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(ImageError::io("remove", &path))?;
            tracing::info!(path = %path.display(), "removed the rest of interrupted work");
        }
        Ok(dirs)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn dir(&self, kind: Kind) -> PathBuf {
        match kind {
            Kind::Blob => self.root.join("blobs").join("sha256"),
            Kind::Rootfs => self.root.join("erofs"),
        }
    }

    pub(crate) fn path(&self, kind: Kind, digest: &Digest) -> PathBuf {
        match kind {
            Kind::Blob => self.dir(kind).join(digest.hex()),
            Kind::Rootfs => self.dir(kind).join(format!("{}.erofs", digest.hex())),
        }
    }

    /// The digest that a file's name stands for; `None` for a foreign file.
    pub(crate) fn digest_of_name(kind: Kind, name: &str) -> Option<Digest> {
        let hex = match kind {
            Kind::Blob => name,
            Kind::Rootfs => name.strip_suffix(".erofs")?,
        };
        format!("sha256:{hex}").parse().ok()
    }

    /// Opens a file for reading; `None` if it is not there.
    pub(crate) fn open_file(
        &self,
        kind: Kind,
        digest: &Digest,
    ) -> Result<Option<File>, ImageError> {
        let path = self.path(kind, digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("open", &path)(error)),
        }
    }

    /// A new file in `tmp`; it is removed if it is dropped.
    pub(crate) fn temporary(&self) -> Result<NamedTempFile, ImageError> {
        let tmp = self.tmp();
        NamedTempFile::new_in(&tmp).map_err(ImageError::io("make a file in", &tmp))
    }

    /// Gives a complete file its final name, durably.
    pub(crate) fn keep(
        &self,
        file: TempPath,
        kind: Kind,
        digest: &Digest,
    ) -> Result<(), ImageError> {
        let path = self.path(kind, digest);
        File::open(&file)
            .and_then(|file| file.sync_all())
            .map_err(ImageError::io("sync", &file))?;
        file.persist(&path)
            .map_err(|error| ImageError::io("name", &path)(error.error))?;
        sync_dir(&self.dir(kind))
    }

    /// Removes a file; one that is not there is no error.
    pub(crate) fn remove(&self, kind: Kind, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(kind, digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(ImageError::io("sync", dir))
}

/// Content on its way into the store, hashed as it comes.
pub(crate) struct BlobWriter {
    file: NamedTempFile,
    hasher: Sha256,
    size: u64,
}

/// Complete content, not yet under its final name.
#[derive(Debug)]
pub(crate) struct StagedBlob {
    /// Closed: an archive may have more files than a process may open.
    pub(crate) file: TempPath,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl BlobWriter {
    pub(crate) fn new(dirs: &Directories) -> Result<Self, ImageError> {
        Ok(Self {
            file: dirs.temporary()?,
            hasher: Sha256::new(),
            size: 0,
        })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        let Self { file, .. } = self;
        file.as_file_mut()
            .write_all(bytes)
            .map_err(ImageError::io("write", file.path()))
    }

    pub(crate) fn finish(self) -> StagedBlob {
        let digest = Digest::from_hasher(self.hasher);
        StagedBlob {
            file: self.file.into_temp_path(),
            digest,
            size: self.size,
        }
    }
}

impl StagedBlob {
    /// The content, from its beginning.
    pub(crate) fn open(&self) -> Result<File, ImageError> {
        File::open(&self.file).map_err(ImageError::io("open", &self.file))
    }
}

pub(crate) fn verify(
    expected: Digest,
    expected_size: u64,
    found: Digest,
    found_size: u64,
) -> Result<(), ImageError> {
    if (expected, expected_size) != (found, found_size) {
        return Err(ImageError::Content {
            expected,
            expected_size,
            found,
            found_size,
        });
    }
    Ok(())
}
