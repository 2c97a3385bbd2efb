//! One pull: documents first, then layers side by side, then the file system.

use std::{collections::HashSet, error::Error, iter, sync::Arc};

use reqwest::{Response, StatusCode, header};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    Credentials, Progress, PullError, Status,
    cancel::Cancelled,
    credentials_file::CredentialsFile,
    hosts,
    install::install,
    registry::{Endpoint, RegistryError},
    sink::{Interrupted, Sink},
};
use crate::{
    Digest, Image, ImageError, ImageStore, Reference,
    blobs::{Kind, StagedBlob, verify},
    digest::chain_id,
    manifest::{ConfigFile, Descriptor, Document, Manifest, ManifestError, for_this_machine},
    store::Pins,
};

/// Layers downloaded side by side.
const PARALLEL: usize = 3;
/// Indexes within indexes.
const MAX_DEPTH: usize = 4;
/// Bytes of a layer between two reports.
const REPORT_EVERY: u64 = 1 << 20;

type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// A pull in progress.
pub(super) struct Transfer {
    store: ImageStore,
    reference: Reference,
    endpoints: Arc<Vec<Endpoint>>,
    report: Report,
    cancelled: Cancelled,
}

/// What the documents say.
pub(super) struct Resolved {
    /// Of the first document, which the name stands for.
    pub(super) digest: Digest,
    /// Indexes, manifest and configuration.
    pub(super) documents: Vec<Vec<u8>>,
    pub(super) manifest: Manifest,
    pub(super) config: ConfigFile,
}

impl Transfer {
    pub(super) fn new(
        store: ImageStore,
        reference: Reference,
        credentials: Option<Credentials>,
        report: impl Fn(Progress) + Send + Sync + 'static,
        cancelled: Cancelled,
    ) -> Result<Self, ImageError> {
        let Some(registry) = reference.registry.clone() else {
            return Err(PullError::NoRegistry {
                name: reference.to_string(),
            }
            .into());
        };
        let hosts = hosts::load(store.inner.config.registries_dir.as_deref(), &registry).map_err(
            |source| PullError::Hosts {
                registry: registry.clone(),
                source,
            },
        )?;
        let file = CredentialsFile::load(store.inner.config.credentials_file.as_deref())
            .map_err(PullError::CredentialsFile)?;
        let repository = &reference.repository;
        let endpoints = hosts.into_iter().map(|host| {
            let address = host.base.to_string();
            // The request's are meant for the registry itself. A mirror gets only
            // what the node's own file has under the mirror's name.
            let credentials = if host.is_server {
                let own = credentials.clone();
                own.or_else(|| file.find(&registry, repository))
            } else {
                file.find(&host.name(), repository)
            };
            Endpoint::new(host, &registry, repository, credentials).map_err(|source| {
                PullError::Registry {
                    what: reference.to_string(),
                    host: address,
                    before: Vec::new(),
                    source: Box::new(source),
                }
            })
        });
        let endpoints = Arc::new(endpoints.collect::<Result<Vec<_>, _>>()?);
        Ok(Self {
            store,
            reference,
            endpoints,
            report: Arc::new(report),
            cancelled,
        })
    }

    pub(super) async fn run(self) -> Result<Image, ImageError> {
        (self.report)(Progress {
            digest: None,
            status: Status::Resolving,
            current: 0,
            total: 0,
        });
        let resolved = tokio::select! {
            resolved = self.resolve() => resolved?,
            () = self.cancelled.wait() => return Err(PullError::GivenUp.into()),
        };
        let diff_ids = resolved.config.diff_ids();
        let layers = &resolved.manifest.layers;
        if diff_ids.len() != layers.len() {
            return Err(ManifestError::LayerCount {
                digest: resolved.digest,
                layers: layers.len(),
                diff_ids: diff_ids.len(),
            }
            .into());
        }
        let chain = chain_id(diff_ids).ok_or(ManifestError::Layers {
            digest: resolved.digest,
            count: 0,
        })?;
        self.check_sizes(layers)?;
        let documents = resolved.documents.iter().map(|bytes| Digest::of(bytes));
        let needed = documents
            .chain(layers.iter().map(|layer| layer.digest))
            .chain([chain]);
        let pins = self.store.pin(needed);
        let result = match self.layers(&chain, layers).await {
            Ok(staged) => self.install(resolved, chain, staged).await,
            Err(error) => Err(error),
        };
        self.tidy(pins, result.is_err()).await;
        result
    }

    /// Lets go of the files; those of a refused image are removed.
    async fn tidy(&self, pins: Pins, failed: bool) {
        drop(pins);
        if failed {
            let store = self.store.clone();
            let done = tokio::task::spawn_blocking(move || store.gc()).await;
            if !matches!(done, Ok(Ok(()))) {
                tracing::warn!("cannot remove the files of a refused image");
            }
        }
    }

    fn check_sizes(&self, layers: &[Descriptor]) -> Result<(), ImageError> {
        let limit = self.store.inner.config.limits.max_compressed_bytes;
        let size = layers
            .iter()
            .fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        if size > limit {
            let what = format!("the layers of {}", self.reference);
            return Err(ImageError::TooLarge { what, size, limit });
        }
        Ok(())
    }

    /// From the name to manifest and configuration.
    async fn resolve(&self) -> Result<Resolved, ImageError> {
        let mut documents = Vec::new();
        let mut wanted: Option<Descriptor> = None;
        let first = match (&self.reference.digest, &self.reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        };
        for _ in 0..MAX_DEPTH {
            let name = wanted
                .as_ref()
                .map_or(first.clone(), |entry| entry.digest.to_string());
            let expected = wanted
                .as_ref()
                .map(|entry| entry.digest)
                .or(self.reference.digest);
            let (bytes, came_as) = self.manifest(&name, expected).await?;
            if let Some(entry) = &wanted {
                verify(
                    entry.digest,
                    entry.size,
                    Digest::of(&bytes),
                    bytes.len() as u64,
                )?;
            }
            let declared = wanted
                .as_ref()
                .map(|entry| entry.media_type.clone())
                .or(came_as);
            let declared = declared.filter(|media_type| {
                // What servers say that do not know; the document itself decides.
                !matches!(
                    &**media_type,
                    "" | "application/json" | "text/plain" | "application/octet-stream"
                )
            });
            let document = Document::parse(&bytes, declared.as_deref())?;
            documents.push(bytes);
            match document {
                Document::Index(entries) => wanted = Some(for_this_machine(&entries)?[0].clone()),
                Document::Manifest(manifest) => {
                    let bytes = self.config_document(&manifest.config).await?;
                    let config = ConfigFile::parse(&bytes)?;
                    let digest = Digest::of(&documents[0]);
                    documents.push(bytes);
                    return Ok(Resolved {
                        digest,
                        documents,
                        manifest,
                        config,
                    });
                }
            }
        }
        let digest = documents
            .last()
            .map_or(Digest::of(b""), |bytes| Digest::of(bytes));
        Err(ManifestError::Nested {
            digest,
            limit: MAX_DEPTH,
        }
        .into())
    }

    async fn manifest(
        &self,
        name: &str,
        expected: Option<Digest>,
    ) -> Result<(Vec<u8>, Option<String>), ImageError> {
        let limit = self.store.inner.config.limits.max_document_bytes;
        let mut failures = Failures::default();
        for endpoint in self.endpoints.iter() {
            if expected.is_none() && !endpoint.host.resolves {
                continue;
            }
            let result = endpoint
                .manifest(name, limit)
                .await
                .and_then(|(bytes, media_type)| {
                    let found = Digest::of(&bytes);
                    match expected {
                        Some(expected) if expected != found => {
                            Err(RegistryError::Digest { found, expected })
                        }
                        _ => Ok((bytes, media_type)),
                    }
                });
            match result {
                Ok(found) => return Ok(found),
                Err(error) => failures.add(endpoint, error),
            }
        }
        Err(failures.into_error(&format!("manifest {name}"), &self.reference))
    }

    async fn config_document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let limit = self.store.inner.config.limits.max_document_bytes;
        if descriptor.size > limit {
            let what = format!("configuration {}", descriptor.digest);
            return Err(ImageError::TooLarge {
                what,
                size: descriptor.size,
                limit,
            });
        }
        let mut failures = Failures::default();
        for endpoint in self.endpoints.iter() {
            match endpoint.document(descriptor.digest, descriptor.size).await {
                Ok(bytes) => {
                    verify(
                        descriptor.digest,
                        descriptor.size,
                        Digest::of(&bytes),
                        bytes.len() as u64,
                    )?;
                    return Ok(bytes);
                }
                Err(error) => failures.add(endpoint, error),
            }
        }
        let what = format!("configuration {}", descriptor.digest);
        Err(failures.into_error(&what, &self.reference))
    }

    /// Downloads the layers that are not here, unless the file system is.
    async fn layers(
        &self,
        chain: &Digest,
        layers: &[Descriptor],
    ) -> Result<Vec<StagedBlob>, ImageError> {
        let dirs = &self.store.inner.dirs;
        let is_built = dirs.open_file(Kind::Rootfs, chain)?.is_some();
        let slots = Arc::new(Semaphore::new(PARALLEL));
        let mut seen = HashSet::new();
        let mut downloads = JoinSet::new();
        // Closed when the last writer has let go of its file.
        let (alive, mut ended) = mpsc::channel(1);
        for layer in layers.iter().filter(|layer| seen.insert(layer.digest)) {
            if is_built || dirs.open_file(Kind::Blob, &layer.digest)?.is_some() {
                (self.report)(Progress {
                    digest: Some(layer.digest),
                    status: Status::Present,
                    current: layer.size,
                    total: layer.size,
                });
                continue;
            }
            let (layer, slots, alive) = (layer.clone(), Arc::clone(&slots), alive.clone());
            let own = Self {
                store: self.store.clone(),
                reference: self.reference.clone(),
                endpoints: Arc::clone(&self.endpoints),
                report: Arc::clone(&self.report),
                cancelled: self.cancelled.clone(),
            };
            downloads.spawn(async move {
                // The semaphore is never closed.
                let _slot = slots.acquire_owned().await;
                own.layer(&layer, &alive).await
            });
        }
        let mut staged = Vec::new();
        let mut result = Ok(());
        while result.is_ok() {
            let done = tokio::select! {
                done = downloads.join_next() => done,
                () = self.cancelled.wait() => Some(Ok(Err(PullError::GivenUp.into()))),
            };
            match done {
                None => break,
                Some(Ok(Ok(blob))) => staged.push(blob),
                Some(Ok(Err(error))) => result = Err(error),
                Some(Err(_)) => result = Err(ImageError::Thread),
            }
        }
        downloads.shutdown().await;
        drop(alive);
        while ended.recv().await.is_some() {}
        result.map(|()| staged)
    }

    async fn layer(
        &self,
        layer: &Descriptor,
        alive: &mpsc::Sender<()>,
    ) -> Result<StagedBlob, ImageError> {
        let mut failures = Failures::default();
        for endpoint in self.endpoints.iter() {
            let mut sink = Sink::start(self.store.clone(), alive.clone());
            let error = match self.download(endpoint, layer, &mut sink).await {
                Ok(()) => {
                    let staged = sink.finish().await?;
                    if staged.digest == layer.digest {
                        self.report_layer(layer, Status::Downloaded, layer.size);
                        return Ok(staged);
                    }
                    RegistryError::Digest {
                        found: staged.digest,
                        expected: layer.digest,
                    }
                }
                Err(Interrupted::Registry(error)) => error,
                // The disk's error, which is no reason to try another host.
                Err(Interrupted::Sink) => {
                    sink.finish().await?;
                    return Err(ImageError::Thread);
                }
            };
            failures.add(endpoint, error);
        }
        Err(failures.into_error(&format!("layer {}", layer.digest), &self.reference))
    }

    /// Brings the whole layer into the sink, over as many requests as it takes.
    async fn download(
        &self,
        endpoint: &Endpoint,
        layer: &Descriptor,
        sink: &mut Sink,
    ) -> Result<(), Interrupted> {
        let mut have = 0;
        let mut attempt = 0;
        loop {
            let result = match endpoint.blob(layer.digest, have).await {
                Ok(response) => self.receive(response, layer, &mut have, sink).await,
                Err(error) => Err(error.into()),
            };
            let error = match result {
                Ok(()) => return Ok(()),
                Err(Interrupted::Registry(error)) => error,
                Err(Interrupted::Sink) => return Err(Interrupted::Sink),
            };
            attempt += 1;
            let Some(wait) = error.wait_before(attempt) else {
                return Err(error.into());
            };
            tracing::debug!(host = %endpoint.host.base, layer = %layer.digest, have, %error, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn receive(
        &self,
        mut response: Response,
        layer: &Descriptor,
        have: &mut u64,
        sink: &mut Sink,
    ) -> Result<(), Interrupted> {
        if *have > 0 && !continues_at(&response, *have) {
            sink.restart().await?;
            *have = 0;
        }
        let mut reported = *have;
        self.report_layer(layer, Status::Downloading, *have);
        while let Some(part) = response.chunk().await.map_err(RegistryError::request)? {
            *have += part.len() as u64;
            if *have > layer.size {
                return Err(RegistryError::TooLong { limit: layer.size }.into());
            }
            sink.append(part.into()).await?;
            if *have - reported >= REPORT_EVERY {
                reported = *have;
                self.report_layer(layer, Status::Downloading, *have);
            }
        }
        if *have < layer.size {
            return Err(RegistryError::TooShort {
                found: *have,
                expected: layer.size,
            }
            .into());
        }
        Ok(())
    }

    fn report_layer(&self, layer: &Descriptor, status: Status, current: u64) {
        (self.report)(Progress {
            digest: Some(layer.digest),
            status,
            current,
            total: layer.size,
        });
    }

    /// Builds the file system and records the image.
    async fn install(
        &self,
        resolved: Resolved,
        chain: Digest,
        staged: Vec<StagedBlob>,
    ) -> Result<Image, ImageError> {
        (self.report)(Progress {
            digest: None,
            status: Status::Unpacking,
            current: 0,
            total: 0,
        });
        let store = self.store.clone();
        let reference = self.reference.clone();
        let cancelled = self.cancelled.clone();
        let task = move || install(&store, &reference, resolved, chain, staged, &cancelled);
        tokio::task::spawn_blocking(task)
            .await
            .map_err(|_| ImageError::Thread)?
    }
}

/// What hosts said that did not deliver.
#[derive(Default)]
struct Failures(Vec<(String, RegistryError)>);

impl Failures {
    fn add(&mut self, endpoint: &Endpoint, error: RegistryError) {
        let host = endpoint.host.base.to_string();
        tracing::debug!(host, %error, "a host did not deliver");
        self.0.push((host, error));
    }

    fn into_error(mut self, what: &str, reference: &Reference) -> ImageError {
        let Some((host, source)) = self.0.pop() else {
            let registry = reference.registry.clone().unwrap_or_default();
            return PullError::NoHost { registry }.into();
        };
        let before = self.0.iter();
        PullError::Registry {
            what: format!("{what} of {reference}"),
            host,
            before: before
                .map(|(host, error)| format!("{host}: {}", chain(error)))
                .collect(),
            source: Box::new(source),
        }
        .into()
    }
}

/// An error and its causes in one line.
fn chain(error: &RegistryError) -> String {
    let first = Some(error as &dyn Error);
    let texts: Vec<_> = iter::successors(first, |&error| error.source())
        .map(ToString::to_string)
        .collect();
    texts.join(": ")
}

/// Whether the answer is the rest of a blob, from byte `from` on.
fn continues_at(response: &Response, from: u64) -> bool {
    let range = response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.trim().starts_with(&format!("bytes {from}-")))
}
