//! Archives of `docker save`: a `manifest.json` that lists, for each image,
//! its configuration, names and layers by their paths in the archive.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Archive, ArchiveError, Found};
use crate::{Config, Digest, ImageError, Reference};

pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Entry {
    fn names(&self) -> Result<Vec<Reference>, ImageError> {
        let tags = self.repo_tags.iter().flatten();
        Ok(tags.map(|tag| tag.parse()).collect::<Result<_, _>>()?)
    }
}

/// All images of the archive.
pub(super) fn find(archive: &Archive, config: &Config) -> Result<Vec<Found>, ImageError> {
    let entries: Vec<Entry> = archive.json(MANIFEST, &config.limits)?;
    if entries.is_empty() {
        return Err(ArchiveError::Empty.into());
    }
    let found = entries.into_iter().map(|entry| {
        let layers = entry
            .layers
            .iter()
            .flatten()
            .map(|path| archive.digest(path));
        Ok(Found {
            manifest: None,
            documents: Vec::new(),
            config: archive.digest(&entry.config)?,
            layers: layers.collect::<Result<_, _>>()?,
            names: entry.names()?,
        })
    });
    found.collect()
}

/// The names of each configuration, where the archive is of both kinds.
pub(super) fn names_by_config(
    archive: &Archive,
    config: &Config,
) -> Result<BTreeMap<Digest, Vec<Reference>>, ImageError> {
    let mut names = BTreeMap::new();
    if archive.has(MANIFEST) {
        let entries: Vec<Entry> = archive.json(MANIFEST, &config.limits)?;
        for entry in entries {
            names.insert(archive.digest(&entry.config)?, entry.names()?);
        }
    }
    Ok(names)
}
