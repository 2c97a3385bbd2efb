//! The store: records and files, kept in step.
//!
//! Lock order: `changes`, then `pins`; no other lock is taken inside. Neither
//! is held while a layer is read, downloaded or unpacked.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use state_store::StateStore;
use tokio::sync::Notify;

use crate::{
    Config, Digest, Image, ImageError, Reference, Usage,
    blobs::{Directories, Kind, StagedBlob},
    gc::STAT_BLOCK,
    manifest::ConfigFile,
    pressure::now_ns,
    pull::Pulls,
    record::{ImageRecord, NameRecord, Tables},
    timestamp,
};

/// The images of a node. Cheap to clone; every clone is the same store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dirs: Directories,
    pub(crate) tables: Tables,
    pub(crate) config: Config,
    /// Held while records and the files they need change together.
    changes: Mutex<()>,
    /// Files that work in progress relies on, and how many times.
    pins: Mutex<HashMap<Digest, usize>>,
    /// A lock for each file system being built, so that it is built once.
    builds: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    pub(crate) pulls: Pulls,
    /// Told of each new image, which may have filled the disk.
    pub(crate) grown: Notify,
    #[cfg(test)]
    pub(crate) builds_done: std::sync::atomic::AtomicUsize,
}

/// Keeps files from being collected while it lives.
#[derive(Debug)]
pub(crate) struct Pins {
    inner: Arc<Inner>,
    digests: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = lock(&self.inner.pins);
        for digest in &self.digests {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
        drop(pins);
        // Only now can what it kept make room.
        self.inner.grown.notify_one();
    }
}

/// A poisoned lock guards nothing here that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that makes an image, ready to be recorded.
pub(crate) struct NewImage {
    pub(crate) id: Digest,
    pub(crate) config: ConfigFile,
    pub(crate) chain_id: Digest,
    /// Bytes of the file system, which is in place.
    pub(crate) size: u64,
    /// Manifests and configuration.
    pub(crate) documents: Vec<Digest>,
    pub(crate) layers: Vec<Digest>,
    /// Keys of the names it gets.
    pub(crate) names: Vec<String>,
    /// Documents and layers that are not in place yet.
    pub(crate) staged: Vec<StagedBlob>,
}

impl ImageStore {
    /// Opens the store under `<root>/images`, or makes it. What interrupted
    /// work left is removed; a record whose files are gone is dropped.
    ///
    /// # Errors
    /// If the directories cannot be made or read, or the records not be read.
    pub fn open(root: &Path, state: StateStore, config: Config) -> Result<Self, ImageError> {
        let inner = Inner {
            dirs: Directories::open(root.join("images"))?,
            tables: Tables::new(state),
            config,
            changes: Mutex::default(),
            pins: Mutex::default(),
            builds: Mutex::default(),
            pulls: Pulls::default(),
            grown: Notify::new(),
            #[cfg(test)]
            builds_done: std::sync::atomic::AtomicUsize::default(),
        };
        let store = Self {
            inner: Arc::new(inner),
        };
        store.drop_broken_records()?;
        store.gc()?;
        Ok(store)
    }

    /// The image of that name, if the store has it: a reference (without tag:
    /// `latest`), `NAME@sha256:...`, an id, or an id's unique first digits (at
    /// least four, with or without `sha256:`).
    ///
    /// # Errors
    /// If the name breaks the rules, is the beginning of several ids, or the
    /// records cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Image>, ImageError> {
        let Some((id, _)) = self.find(name)? else {
            return Ok(None);
        };
        Ok(self.list()?.into_iter().find(|image| image.id == id))
    }

    /// All images, in the order of their ids.
    ///
    /// # Errors
    /// If the records cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let names = self.inner.tables.names.list()?;
        let images = self.inner.tables.images.list()?;
        Ok(images
            .into_iter()
            .map(|(_, record)| {
                let id = record.id;
                let own = names.iter().filter(|(_, name)| name.image == id);
                Image::new(record, own.map(|(key, _)| key.as_str()), &self.inner.config)
            })
            .collect())
    }

    /// The image's file system, opened read-only, for a disk of a pod.
    ///
    /// # Errors
    /// If the image was removed meanwhile.
    pub fn open_rootfs(&self, image: &Image) -> Result<File, ImageError> {
        self.inner
            .dirs
            .open_file(Kind::Rootfs, &image.chain_id)?
            .ok_or_else(|| ImageError::NotFound {
                name: image.id.to_string(),
            })
    }

    /// The registry that a pull of that name goes to; `None` where the name does
    /// not say and there is no default.
    ///
    /// # Errors
    /// If the name breaks the rules.
    pub fn registry_of(&self, name: &str) -> Result<Option<String>, ImageError> {
        let reference = name.parse::<Reference>()?;
        Ok(reference.normalized(&self.inner.config).registry)
    }

    /// The image's configuration document, as it came.
    ///
    /// # Errors
    /// If the image was removed meanwhile, or the file cannot be read.
    pub fn config_document(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        let dirs = &self.inner.dirs;
        let file = dirs.open_file(Kind::Blob, &image.id)?;
        let mut file = file.ok_or_else(|| ImageError::NotFound {
            name: image.id.to_string(),
        })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(ImageError::io("read", &dirs.path(Kind::Blob, &image.id)))?;
        Ok(bytes)
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        self.inner.dirs.root()
    }

    /// What the store takes on disk.
    ///
    /// # Errors
    /// If the directories or records cannot be read.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        let mut usage = Usage {
            images: self.inner.tables.images.list()?.len() as u64,
            ..Usage::default()
        };
        for (kind, _, metadata) in self.files()? {
            usage.files += 1;
            let bytes = metadata.blocks() * STAT_BLOCK;
            match kind {
                Kind::Blob => usage.blob_bytes += bytes,
                Kind::Rootfs => usage.rootfs_bytes += bytes,
            }
        }
        Ok(usage)
    }

    /// The id of the image of that name, and the key of the name record, if it
    /// was found by one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<(Digest, Option<String>)>, ImageError> {
        let tables = &self.inner.tables;
        if let Ok(id) = name.parse::<Digest>() {
            return Ok(tables
                .images
                .get(&id.to_string())?
                .map(|record| (record.id, None)));
        }
        // A name is looked for first: a short id may well be one, too.
        let parsed = name.parse::<Reference>();
        if let Ok(reference) = &parsed {
            for reference in [reference.normalized(&self.inner.config), reference.clone()] {
                let key = reference.key();
                if let Some(record) = tables.names.get(&key)? {
                    return Ok(Some((record.image, Some(key))));
                }
            }
        }
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let is_prefix = (4..=64).contains(&digits.len())
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_prefix {
            let prefix = format!("sha256:{digits}");
            let images = tables.images.list()?;
            let mut found = images.iter().filter(|(key, _)| key.starts_with(&prefix));
            if let Some((_, record)) = found.next() {
                return match found.count() {
                    0 => Ok(Some((record.id, None))),
                    more => Err(ImageError::Ambiguous {
                        prefix: digits.to_owned(),
                        count: more + 1,
                    }),
                };
            }
            return Ok(None);
        }
        parsed.map(|_| None).map_err(Into::into)
    }

    /// Keeps the files of these digests until the result is dropped.
    pub(crate) fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Pins {
        let digests: Vec<_> = digests.into_iter().collect();
        let mut pins = lock(&self.inner.pins);
        for digest in &digests {
            *pins.entry(*digest).or_default() += 1;
        }
        Pins {
            inner: Arc::clone(&self.inner),
            digests,
        }
    }

    /// Runs `build` unless the file system exists; callers with the same chain
    /// wait for one another. Returns its size. The chain must be pinned.
    pub(crate) fn build_once(
        &self,
        chain: &Digest,
        build: impl FnOnce() -> Result<u64, ImageError>,
    ) -> Result<u64, ImageError> {
        let own = Arc::clone(lock(&self.inner.builds).entry(*chain).or_default());
        let result = {
            let _turn = lock(&own);
            match self.inner.dirs.open_file(Kind::Rootfs, chain)? {
                Some(file) => {
                    file.metadata()
                        .map(|metadata| metadata.len())
                        .map_err(ImageError::io(
                            "read",
                            &self.inner.dirs.path(Kind::Rootfs, chain),
                        ))
                }
                None => {
                    #[cfg(test)]
                    self.inner
                        .builds_done
                        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    build()
                }
            }
        };
        let mut builds = lock(&self.inner.builds);
        // This one and the map's own: nobody waits.
        if Arc::strong_count(&own) == 2 {
            builds.remove(chain);
        }
        result
    }

    /// Puts an image's files in place and records it. All its digests must be
    /// pinned by the caller.
    pub(crate) fn commit(&self, new: NewImage) -> Result<Image, ImageError> {
        let inner = &self.inner;
        let changes = lock(&inner.changes);
        for blob in new.staged {
            if inner.dirs.open_file(Kind::Blob, &blob.digest)?.is_none() {
                inner.dirs.keep(blob.file, Kind::Blob, &blob.digest)?;
            }
        }
        let record = ImageRecord {
            id: new.id,
            chain_id: new.chain_id,
            documents: new.documents.into_iter().collect(),
            layers: new.layers,
            size: new.size,
            created_at_ns: timestamp::parse(&new.config.created).unwrap_or(0),
            config: new.config.config,
            delete_when_free: false,
            last_used_ns: now_ns(),
        };
        let key = new.id.to_string();
        inner.tables.state.transaction::<_, ImageError>(|tx| {
            let mut record = record;
            // The same image by another manifest: keep what both brought.
            if let Some(known) = tx.get(&inner.tables.images, &key)? {
                record.documents.extend(known.documents);
                if record.layers.is_empty() {
                    record.layers = known.layers;
                }
            }
            tx.put(&inner.tables.images, &key, &record)?;
            for name in &new.names {
                tx.put(&inner.tables.names, name, &NameRecord { image: new.id })?;
            }
            Ok(())
        })?;
        // Before anybody may remove it again.
        let image = self.get(&key)?;
        drop(changes);
        image.ok_or(ImageError::NotFound { name: key })
    }

    /// Holds back other changes of records and their files.
    pub(crate) fn lock_changes(&self) -> MutexGuard<'_, ()> {
        lock(&self.inner.changes)
    }

    /// All files of the store.
    pub(crate) fn files(&self) -> Result<Vec<(Kind, Digest, std::fs::Metadata)>, ImageError> {
        let mut files = Vec::new();
        for kind in [Kind::Blob, Kind::Rootfs] {
            let dir = self.inner.dirs.dir(kind);
            for entry in std::fs::read_dir(&dir).map_err(ImageError::io("list", &dir))? {
                let entry = entry.map_err(ImageError::io("list", &dir))?;
                let name = entry.file_name();
                let digest = name
                    .to_str()
                    .and_then(|name| Directories::digest_of_name(kind, name));
                let Some(digest) = digest else { continue };
                match entry.metadata() {
                    Ok(metadata) => files.push((kind, digest, metadata)),
                    // Collected meanwhile.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(ImageError::io("read", &entry.path())(error)),
                }
            }
        }
        Ok(files)
    }

    /// Runs `body` with the digests that are pinned; none is added meanwhile.
    pub(crate) fn with_pinned<R>(&self, body: impl FnOnce(&HashSet<Digest>) -> R) -> R {
        let pins = lock(&self.inner.pins);
        body(&pins.keys().copied().collect())
    }
}
