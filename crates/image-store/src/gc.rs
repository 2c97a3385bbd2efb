//! Leases, removal, and the collection of files that nothing needs.

use std::{collections::HashSet, os::unix::fs::MetadataExt};

use crate::{
    Digest, ImageError, ImageStore, Removed, blobs::Kind, pressure::now_ns, record::LeaseRecord,
};
use state_store::Transaction;

/// Bytes of a block as stat(2) counts them.
pub(crate) const STAT_BLOCK: u64 = 512;

impl ImageStore {
    /// Notes that `owner` (the id of a container or pod) uses the image; it
    /// cannot be deleted until [`ImageStore::release`]. Kept across restarts;
    /// an owner may use several images.
    ///
    /// # Errors
    /// If there is no such image, or the record cannot be written.
    pub fn lease(&self, image: &Digest, owner: &str) -> Result<(), ImageError> {
        let _changes = self.lock_changes();
        let tables = &self.inner.tables;
        tables.state.transaction(|tx| {
            let key = image.to_string();
            let Some(mut record) = tx.get(&tables.images, &key)? else {
                return Err(ImageError::NotFound { name: key });
            };
            record.last_used_ns = now_ns();
            tx.put(&tables.images, &key, &record)?;
            let mut lease = tx.get(&tables.leases, owner)?.unwrap_or_default();
            lease.images.insert(*image);
            Ok(tx.put(&tables.leases, owner, &lease)?)
        })
    }

    /// Ends all leases of `owner`; one without leases is no error. An image
    /// that lost its last name while in use goes with its last lease.
    ///
    /// # Errors
    /// If the records or files cannot be changed.
    pub fn release(&self, owner: &str) -> Result<(), ImageError> {
        let changes = self.lock_changes();
        let tables = &self.inner.tables;
        let deleted = tables.state.transaction::<_, ImageError>(|tx| {
            let released = tx.get(&tables.leases, owner)?.unwrap_or_default();
            tx.remove(&tables.leases, owner)?;
            let leases = tx.list(&tables.leases)?;
            let mut deleted = false;
            for id in released.images {
                let key = id.to_string();
                let Some(mut record) = tx.get(&tables.images, &key)? else {
                    continue;
                };
                if record.delete_when_free && owners(&leases, &id).is_empty() {
                    tx.remove(&tables.images, &key)?;
                    deleted = true;
                } else {
                    record.last_used_ns = now_ns();
                    tx.put(&tables.images, &key, &record)?;
                }
            }
            Ok(deleted)
        })?;
        drop(changes);
        if deleted { self.gc() } else { Ok(()) }
    }

    /// Owners with leases, sorted; for the owner to drop those it forgot.
    ///
    /// # Errors
    /// If the records cannot be read.
    pub fn lease_owners(&self) -> Result<Vec<String>, ImageError> {
        Ok(self
            .inner
            .tables
            .leases
            .list()?
            .into_iter()
            .map(|(owner, _)| owner)
            .collect())
    }

    /// Removes a name, and with the last name the image; or, given an id, the
    /// image with all its names. An image in use keeps its data until it is
    /// released, and cannot be removed by its id.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::InUse`], or a failure to change
    /// records and files.
    pub fn remove(&self, name: &str) -> Result<Removed, ImageError> {
        let changes = self.lock_changes();
        let (id, name_key) = self.find(name)?.ok_or_else(|| ImageError::NotFound {
            name: name.to_owned(),
        })?;
        let tables = &self.inner.tables;
        let removed = tables.state.transaction::<_, ImageError>(|tx| {
            let leases = tx.list(&tables.leases)?;
            let users = owners(&leases, &id);
            let all: Vec<_> = tx
                .list(&tables.names)?
                .into_iter()
                .filter(|(_, record)| record.image == id)
                .map(|(key, _)| key)
                .collect();
            let untagged = match name_key {
                // A digest says what the tag of the same repository brought, so
                // it goes with the last tag.
                Some(key)
                    if all
                        .iter()
                        .any(|other| *other != key && !other.contains('@')) =>
                {
                    vec![key]
                }
                Some(_) => all.clone(),
                None if !users.is_empty() => return Err(ImageError::InUse { id, owners: users }),
                None => all.clone(),
            };
            for key in &untagged {
                tx.remove(&tables.names, key)?;
            }
            let mut removed = Removed {
                untagged,
                deleted: None,
            };
            if removed.untagged.len() < all.len() {
                return Ok(removed);
            }
            removed.deleted = self.let_go(tx, id)?;
            Ok(removed)
        })?;
        drop(changes);
        if removed.deleted.is_some() {
            self.gc()?;
        }
        Ok(removed)
    }

    /// Removes an image with all its names, by any of them or by its id. One in use
    /// is [`crate::Image::unwanted`] from now on and goes with its last lease. Of an
    /// unknown image: nothing.
    ///
    /// # Errors
    /// If the name breaks the rules, or records and files cannot be changed.
    pub fn forget(&self, name: &str) -> Result<Removed, ImageError> {
        let changes = self.lock_changes();
        let Some((id, _)) = self.find(name)? else {
            return Ok(Removed::default());
        };
        let tables = &self.inner.tables;
        let removed = tables.state.transaction::<_, ImageError>(|tx| {
            let mut removed = Removed::default();
            for (name, record) in tx.list(&tables.names)? {
                if record.image == id {
                    tx.remove(&tables.names, &name)?;
                    removed.untagged.push(name);
                }
            }
            removed.deleted = self.let_go(tx, id)?;
            Ok(removed)
        })?;
        drop(changes);
        if removed.deleted.is_some() {
            self.gc()?;
        }
        Ok(removed)
    }

    /// An image without names: its record goes, or says that it is to go with its last
    /// lease. Returns the image that went.
    fn let_go(&self, tx: &Transaction<'_>, id: Digest) -> Result<Option<Digest>, ImageError> {
        let tables = &self.inner.tables;
        let key = id.to_string();
        if owners(&tx.list(&tables.leases)?, &id).is_empty() {
            tx.remove(&tables.images, &key)?;
            return Ok(Some(id));
        }
        if let Some(mut record) = tx.get(&tables.images, &key)? {
            record.delete_when_free = true;
            tx.put(&tables.images, &key, &record)?;
        }
        Ok(None)
    }

    /// Removes files that no record needs and no work in progress uses.
    ///
    /// # Errors
    /// If the records cannot be read or a file cannot be removed.
    pub fn gc(&self) -> Result<(), ImageError> {
        self.remove_unneeded_files().map(drop)
    }

    /// The same; says how many bytes of the disk they took.
    pub(crate) fn remove_unneeded_files(&self) -> Result<u64, ImageError> {
        let _changes = self.lock_changes();
        let mut needed = HashSet::new();
        for (_, record) in self.inner.tables.images.list()? {
            needed.extend(record.files());
        }
        let files = self.files()?;
        self.with_pinned(|pinned| {
            let mut freed = 0;
            for (kind, digest, metadata) in files {
                if !needed.contains(&(kind, digest)) && !pinned.contains(&digest) {
                    tracing::debug!(?kind, %digest, "removing a file that nothing needs");
                    self.inner.dirs.remove(kind, &digest)?;
                    freed += metadata.blocks() * STAT_BLOCK;
                }
            }
            Ok(freed)
        })
    }

    /// Drops records whose file system is gone, with a warning, and layers
    /// that are gone from the others.
    pub(crate) fn drop_broken_records(&self) -> Result<(), ImageError> {
        let present: HashSet<_> = self
            .files()?
            .into_iter()
            .map(|(kind, digest, _)| (kind, digest))
            .collect();
        let tables = &self.inner.tables;
        tables.state.transaction(|tx| {
            for (key, mut record) in tx.list(&tables.images)? {
                let has_documents = record
                    .documents
                    .iter()
                    .all(|d| present.contains(&(Kind::Blob, *d)));
                if !has_documents || !present.contains(&(Kind::Rootfs, record.chain_id)) {
                    tracing::warn!(
                        image = key,
                        "files of the image are gone; pull or import it again"
                    );
                    tx.remove(&tables.images, &key)?;
                    for (name, _) in tx
                        .list(&tables.names)?
                        .iter()
                        .filter(|(_, name)| name.image == record.id)
                    {
                        tx.remove(&tables.names, name)?;
                    }
                    continue;
                }
                let before = record.layers.len();
                record
                    .layers
                    .retain(|layer| present.contains(&(Kind::Blob, *layer)));
                if record.layers.len() < before {
                    tx.put(&tables.images, &key, &record)?;
                }
            }
            Ok(())
        })
    }
}

pub(crate) fn owners(leases: &[(String, LeaseRecord)], image: &Digest) -> Vec<String> {
    leases
        .iter()
        .filter(|(_, lease)| lease.images.contains(image))
        .map(|(owner, _)| owner.clone())
        .collect()
}
