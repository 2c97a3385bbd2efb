//! OCI image layouts (image-spec, "Image Layout Specification").

use std::collections::BTreeMap;

use super::{Archive, ArchiveError, Found, docker};
use crate::{
    Config, Digest, ImageError, Reference,
    manifest::{ConfigFile, Descriptor, Document, Manifest, ManifestError, for_this_machine},
};

pub(super) const INDEX: &str = "index.json";
/// The whole name, written by containerd, buildkit and docker.
const FULL_NAME: &str = "io.containerd.image.name";
/// By the specification: a tag, or a whole name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes within indexes.
pub(crate) const MAX_DEPTH: usize = 4;

/// All images of the layout that this machine can run.
pub(super) fn find(archive: &Archive, config: &Config) -> Result<Vec<Found>, ImageError> {
    let bytes = archive.document("index", &archive.digest(INDEX)?, &config.limits)?;
    let Document::Index(entries) = Document::parse(&bytes, None)? else {
        return Err(ManifestError::Ambiguous {
            digest: Digest::of(&bytes),
        }
        .into());
    };
    if entries.is_empty() {
        return Err(ArchiveError::Empty.into());
    }
    // What docker save adds: names without the registry that it assumes.
    let short_names = docker::names_by_config(archive, config)?;
    let mut images = Vec::new();
    let mut unfit = None;
    for entry in for_this_machine(&entries)? {
        match find_image(archive, entry, &short_names, config) {
            Ok(image) => images.push(image),
            // An entry without a platform may turn out to be for another one.
            Err(ImageError::Manifest(error @ ManifestError::Platform { .. })) => {
                unfit.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match unfit {
        Some(error) if images.is_empty() => Err(error.into()),
        _ => Ok(merge_names(images)),
    }
}

fn find_image(
    archive: &Archive,
    entry: &Descriptor,
    short_names: &BTreeMap<Digest, Vec<Reference>>,
    config: &Config,
) -> Result<Found, ImageError> {
    let mut documents = Vec::new();
    let manifest = find_manifest(archive, entry, &mut documents, config)?;
    let config_digest = archive.resolve(&manifest.config)?;
    // Its platform decides, whatever the index said.
    ConfigFile::parse(&archive.document("configuration", &config_digest, &config.limits)?)?;
    let layers = manifest.layers.iter().map(|layer| archive.resolve(layer));
    let mut names = names(entry)?;
    names.extend(
        short_names
            .get(&config_digest)
            .into_iter()
            .flatten()
            .cloned(),
    );
    Ok(Found {
        manifest: Some(entry.digest),
        documents,
        config: config_digest,
        layers: layers.collect::<Result<_, _>>()?,
        names,
    })
}

/// Follows indexes down to this machine's manifest; notes all on the way.
fn find_manifest(
    archive: &Archive,
    entry: &Descriptor,
    documents: &mut Vec<Digest>,
    config: &Config,
) -> Result<Manifest, ImageError> {
    let mut entry = entry.clone();
    for _ in 0..MAX_DEPTH {
        let digest = archive.resolve(&entry)?;
        documents.push(digest);
        let bytes = archive.document("manifest", &digest, &config.limits)?;
        let media_type = Some(entry.media_type.as_str()).filter(|text| !text.is_empty());
        match Document::parse(&bytes, media_type)? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(entries) => entry = for_this_machine(&entries)?[0].clone(),
        }
    }
    Err(ManifestError::Nested {
        digest: entry.digest,
        limit: MAX_DEPTH,
    }
    .into())
}

fn names(entry: &Descriptor) -> Result<Vec<Reference>, ImageError> {
    if let Some(name) = entry.annotations.get(FULL_NAME) {
        return Ok(vec![name.parse()?]);
    }
    match entry.annotations.get(REF_NAME) {
        // A bare tag names nothing.
        Some(name) if name.contains(['/', ':']) => Ok(vec![name.parse()?]),
        _ => Ok(Vec::new()),
    }
}

/// An image with several names has an entry for each.
fn merge_names(images: Vec<Found>) -> Vec<Found> {
    let mut merged: Vec<Found> = Vec::new();
    for image in images {
        match merged
            .iter_mut()
            .find(|known| known.manifest == image.manifest)
        {
            Some(known) => known.names.extend(image.names),
            None => merged.push(image),
        }
    }
    merged
}
