//! Room on the store's disk: what images take of it, and which ones go when it
//! gets full: those that nothing has used for the longest.

use std::{
    collections::HashSet,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    Digest, Image, ImageError, ImageStore,
    gc::{STAT_BLOCK, owners},
    record::ImageRecord,
};

/// How often the disk is looked at where nothing calls for it: others fill it, too.
const PERIOD: Duration = Duration::from_secs(60);

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

/// The file system that the store lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes it has.
    pub capacity: u64,
    /// Bytes of them that can be written.
    pub available: u64,
}

impl Disk {
    /// Its used part in hundredths, rounded up, as the kubelet reckons it.
    pub fn used_percent(&self) -> u8 {
        let free = u128::from(self.available) * 100 / u128::from(self.capacity.max(1));
        100 - u8::try_from(free).unwrap_or(100).min(100)
    }

    /// Bytes that must go until only `percent` are used.
    fn above(&self, percent: u8) -> u64 {
        let free = u128::from(self.capacity) * u128::from(100 - percent.min(100)) / 100;
        u64::try_from(free)
            .unwrap_or(u64::MAX)
            .saturating_sub(self.available)
    }
}

/// When images are removed by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Hundredths of the disk that are used when it begins, at most 100.
    pub high: u8,
    /// Hundredths that are used when it ends, below `high`.
    pub low: u8,
    /// An image is left alone for so long after it came or was used.
    pub min_age: Duration,
}

/// What the images take, and what of it could be had back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Images.
    pub images: u64,
    /// Those of them that are leased.
    pub in_use: u64,
    /// Bytes of the disk for all of them.
    pub bytes: u64,
    /// Bytes that [`ImageStore::collect`] would free.
    pub reclaimable_bytes: u64,
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The images, in the order in which they went.
    pub images: Vec<Image>,
    /// Bytes of the disk.
    pub freed_bytes: u64,
}

impl ImageStore {
    /// The file system of the store.
    ///
    /// # Errors
    /// If it does not tell.
    pub fn disk(&self) -> Result<Disk, ImageError> {
        let stat = rustix::fs::statvfs(self.dir())
            .map_err(|e| ImageError::io("read the file system of", self.dir())(e.into()))?;
        Ok(Disk {
            capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// What the images take.
    ///
    /// # Errors
    /// If the directories or records cannot be read.
    pub fn footprint(&self) -> Result<Footprint, ImageError> {
        let free: HashSet<Digest> = self.free(Duration::ZERO)?.iter().map(|r| r.id).collect();
        let records = self.inner.tables.images.list()?;
        let leases = self.inner.tables.leases.list()?;
        let leased = |id: &Digest| !owners(&leases, id).is_empty();
        let kept: HashSet<_> = records
            .iter()
            .filter(|(_, record)| !free.contains(&record.id))
            .flat_map(|(_, record)| record.files())
            .collect();
        let mut footprint = Footprint {
            images: records.len() as u64,
            in_use: records.iter().filter(|(_, r)| leased(&r.id)).count() as u64,
            ..Footprint::default()
        };
        for (kind, digest, metadata) in self.files()? {
            let bytes = metadata.blocks() * STAT_BLOCK;
            footprint.bytes += bytes;
            if !kept.contains(&(kind, digest)) {
                footprint.reclaimable_bytes += bytes;
            }
        }
        Ok(footprint)
    }

    /// Removes images that are neither leased nor pinned nor younger or more lately
    /// used than `min_age`, the least recently used first, until `wanted` bytes are
    /// free or none is left.
    ///
    /// # Errors
    /// If records or files cannot be read or changed; what went before is gone.
    pub fn collect(&self, wanted: u64, min_age: Duration) -> Result<Collected, ImageError> {
        let mut collected = Collected {
            freed_bytes: self.remove_unneeded_files()?,
            ..Collected::default()
        };
        for record in self.free(min_age)? {
            if collected.freed_bytes >= wanted {
                break;
            }
            if let Some(image) = self.remove_free(&record.id)? {
                tracing::info!(image = %image.id, names = ?image.tags, "removed an unused image");
                collected.images.push(image);
                collected.freed_bytes += self.remove_unneeded_files()?;
            }
        }
        Ok(collected)
    }

    /// Collects if the disk is used to the high mark, down to the low one. `None`:
    /// it is not.
    ///
    /// # Errors
    /// As [`ImageStore::collect`].
    pub fn relieve(&self, marks: &Watermarks) -> Result<Option<Collected>, ImageError> {
        let disk = self.disk()?;
        if disk.used_percent() < marks.high {
            return Ok(None);
        }
        let wanted = disk.above(marks.low);
        let collected = self.collect(wanted, marks.min_age)?;
        if collected.freed_bytes < wanted {
            tracing::warn!(
                used_percent = self.disk()?.used_percent(),
                freed_bytes = collected.freed_bytes,
                wanted_bytes = wanted,
                dir = %self.dir().display(),
                "no unused image is left to make room; remove pods or other files"
            );
        }
        Ok(Some(collected))
    }

    /// Keeps the disk below its marks for as long as it is polled: looks after each
    /// new image and once a minute.
    pub async fn keep_room(self, marks: Watermarks) {
        loop {
            let store = self.clone();
            match tokio::task::spawn_blocking(move || store.relieve(&marks)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "unused images could not be removed");
                }
                Err(error) => tracing::error!(%error, "the search for unused images died"),
            }
            let _ = tokio::time::timeout(PERIOD, self.inner.grown.notified()).await;
        }
    }

    /// Images that may go, the least recently used first.
    fn free(&self, min_age: Duration) -> Result<Vec<ImageRecord>, ImageError> {
        let leases = self.inner.tables.leases.list()?;
        let pinned: HashSet<Digest> = self
            .list()?
            .into_iter()
            .filter_map(|image| image.pinned.then_some(image.id))
            .collect();
        let age = i64::try_from(min_age.as_nanos()).unwrap_or(i64::MAX);
        let youngest = now_ns().saturating_sub(age);
        let records = self.inner.tables.images.list()?;
        let mut free: Vec<_> = records
            .into_iter()
            .map(|(_, record)| record)
            .filter(|record| {
                record.last_used_ns <= youngest
                    && !pinned.contains(&record.id)
                    && owners(&leases, &record.id).is_empty()
            })
            .collect();
        free.sort_by_key(|record| record.last_used_ns);
        Ok(free)
    }

    /// Removes the record and the names of an image, unless it was leased meanwhile.
    fn remove_free(&self, id: &Digest) -> Result<Option<Image>, ImageError> {
        let _changes = self.lock_changes();
        let Some(image) = self.get(&id.to_string())? else {
            return Ok(None);
        };
        let tables = &self.inner.tables;
        tables.state.transaction(|tx| {
            if !owners(&tx.list(&tables.leases)?, id).is_empty() {
                return Ok(None);
            }
            for name in image.tags.iter().chain(&image.digests) {
                tx.remove(&tables.names, name)?;
            }
            tx.remove(&tables.images, &id.to_string())?;
            Ok(Some(image))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_hundredths_of_the_disk_as_the_kubelet_counts() {
        let disk = |capacity, available| Disk {
            capacity,
            available,
        };
        assert_eq!(disk(1000, 1000).used_percent(), 0);
        assert_eq!(disk(1000, 149).used_percent(), 86);
        assert_eq!(disk(1000, 150).used_percent(), 85);
        assert_eq!(disk(1000, 0).used_percent(), 100);
        assert_eq!(disk(0, 0).used_percent(), 100);
        assert_eq!(disk(u64::MAX, u64::MAX).used_percent(), 0);
        assert_eq!(disk(1000, 100).above(80), 100);
        assert_eq!(disk(1000, 300).above(80), 0);
        assert_eq!(disk(1000, 0).above(0), 1000);
    }
}
