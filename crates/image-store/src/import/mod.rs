//! Import of images from one archive: an OCI image layout, or what `docker
//! save` writes (newer versions of it write both in one).
//!
//! The archive is read once, as a stream; its files go to `tmp` under their
//! digests, and only those of an accepted image move on into the store.

mod archive;
mod docker;
mod layout;

use std::io::{self, Read};

use crate::{
    Config, Digest, Image, ImageError, ImageStore, Reference,
    blobs::{Directories, StagedBlob},
    digest::chain_id,
    layer::TarError,
    manifest::{ConfigFile, ManifestError},
    rootfs::{self, LayerSource},
    store::NewImage,
};
use archive::Archive;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The bytes did not arrive, or are not what their compression says.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// It is no tar archive, or a damaged one.
    #[error("the archive cannot be read (after its member {after:?})")]
    Tar {
        /// The member before, or "the start".
        after: String,
        /// The reason.
        #[source]
        source: TarError,
    },
    /// A tar archive of something else.
    #[error(
        "the archive has neither an index.json (OCI image layout) nor a manifest.json \
         (docker save) at its top"
    )]
    NotAnImage,
    /// A file that others refer to.
    #[error("the archive has no file {path:?}")]
    Missing {
        /// Its path in the archive.
        path: String,
    },
    /// A link to itself, or more links than anybody needs.
    #[error("the archive's member {path:?} is a link that leads nowhere")]
    Link {
        /// Its path in the archive.
        path: String,
    },
    /// A document that is not the JSON it should be.
    #[error("the archive's {path} is not valid")]
    Json {
        /// Its path in the archive.
        path: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// More members than archives of images have.
    #[error("the archive has more than {limit} members")]
    TooManyMembers {
        /// The limit.
        limit: usize,
    },
    /// One name for several images.
    #[error("the archive holds {count} images; a name can only be given for a single one")]
    OneName {
        /// How many it holds.
        count: usize,
    },
    /// An archive without any image.
    #[error("the archive lists no image")]
    Empty,
}

/// An image found in an archive, all by digests of files there.
#[derive(Debug)]
struct Found {
    /// The index or manifest that leads to it, if there is any.
    manifest: Option<Digest>,
    /// Indexes and manifest.
    documents: Vec<Digest>,
    config: Digest,
    layers: Vec<Digest>,
    names: Vec<Reference>,
}

impl ImageStore {
    /// Imports all images of an archive that this machine can run. The archive
    /// may be compressed with gzip or zstd. `default_name` is the name of an
    /// image that has none there; it needs an archive of one image.
    ///
    /// Blocks for as long as reading and unpacking take.
    ///
    /// # Errors
    /// If the archive or an image in it is refused, or the disk is full;
    /// nothing of the refused image is left behind then.
    pub fn import(
        &self,
        reader: impl Read + Send,
        default_name: Option<&str>,
    ) -> Result<Vec<Image>, ImageError> {
        let default_name = default_name.map(str::parse::<Reference>).transpose()?;
        let config = &self.inner.config;
        let mut archive = Archive::read(reader, &self.inner.dirs, &config.limits)?;
        let mut found = if archive.has(layout::INDEX) {
            layout::find(&archive, config)?
        } else if archive.has(docker::MANIFEST) {
            docker::find(&archive, config)?
        } else {
            return Err(ArchiveError::NotAnImage.into());
        };
        if let Some(name) = default_name {
            let [image] = &mut found[..] else {
                return Err(ArchiveError::OneName { count: found.len() }.into());
            };
            image.names.push(name);
        }
        found
            .into_iter()
            .map(|image| self.install(image, &mut archive))
            .collect()
    }

    fn install(&self, found: Found, archive: &mut Archive) -> Result<Image, ImageError> {
        let limits = &self.inner.config.limits;
        let config =
            ConfigFile::parse(&archive.document("configuration", &found.config, limits)?)?;
        let diff_ids = config.diff_ids();
        if diff_ids.len() != found.layers.len() {
            return Err(ManifestError::LayerCount {
                digest: found.manifest.unwrap_or(found.config),
                layers: found.layers.len(),
                diff_ids: diff_ids.len(),
            }
            .into());
        }
        // An image without layers was refused with its configuration.
        let chain_id = chain_id(diff_ids).ok_or(ArchiveError::Empty)?;
        let mut needed = found.documents.clone();
        needed.push(found.config);
        if !self.inner.config.discard_layers {
            needed.extend(&found.layers);
        }
        let pins = self.pin(needed.iter().copied().chain([chain_id]));
        let result = self
            .build_once(&chain_id, || {
                let sources = found.layers.iter().zip(diff_ids).map(|(digest, diff_id)| {
                    let file = archive.open(digest)?;
                    Ok(LayerSource {
                        digest: *digest,
                        diff_id: *diff_id,
                        file,
                    })
                });
                let sources = sources.collect::<Result<Vec<_>, ImageError>>()?;
                rootfs::build(&self.inner.dirs, &chain_id, sources, limits)
            })
            .and_then(|size| {
                let kept = !self.inner.config.discard_layers;
                self.commit(NewImage {
                    id: found.config,
                    chain_id,
                    size,
                    documents: found
                        .documents
                        .iter()
                        .copied()
                        .chain([found.config])
                        .collect(),
                    layers: if kept { found.layers } else { Vec::new() },
                    names: name_keys(&found.names, found.manifest.as_ref(), &self.inner.config),
                    staged: archive.take_copies(&needed, &self.inner.dirs)?,
                    config,
                })
            });
        drop(pins);
        if result.is_err() {
            // The error to report is the first one.
            if let Err(error) = self.gc() {
                tracing::warn!(%error, "cannot remove the files of a refused image");
            }
        }
        result
    }
}

/// The keys under which an image's names are recorded.
pub(crate) fn name_keys(
    names: &[Reference],
    manifest: Option<&Digest>,
    config: &Config,
) -> Vec<String> {
    let mut keys = Vec::new();
    for name in names {
        let name = name.normalized(config);
        // Beside a digest, a tag was not looked up: it may mean another image.
        if name.digest.is_none() {
            keys.push(name.tagged());
        }
        keys.extend(
            manifest
                .or(name.digest.as_ref())
                .map(|digest| name.pinned(digest)),
        );
    }
    keys.sort();
    keys.dedup();
    keys
}

impl Archive {
    /// Moves the files of these digests out, for the store to keep; those that
    /// an image before took already are there.
    fn take_copies(
        &mut self,
        digests: &[Digest],
        dirs: &Directories,
    ) -> Result<Vec<StagedBlob>, ImageError> {
        let mut staged = Vec::new();
        for digest in digests {
            if let Some(blob) = self.take(digest, dirs)? {
                staged.push(blob);
            }
        }
        Ok(staged)
    }
}

#[cfg(test)]
mod tests;
