//! An image: layers and a configuration, written into one tar archive: as an OCI
//! image layout (image-spec 1.1, image-layout.md) or as `docker save` does.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use tar::{Builder, Header};

/// How a layer is stored in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// An image under construction.
#[derive(Debug)]
pub struct ImageBuilder {
    reference: String,
    architecture: String,
    config: Value,
    layers: Vec<(Compression, Vec<u8>)>,
}

impl ImageBuilder {
    /// An image without layers that will be known as `reference`.
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.into(),
            architecture: "amd64".into(),
            config: json!({}),
            layers: Vec::new(),
        }
    }

    /// Sets the run configuration (`Entrypoint`, `Cmd`, `Env`, `User`, ...;
    /// image-spec config.md).
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Says the image is for another architecture.
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.architecture = architecture.into();
        self
    }

    /// Puts a layer (an uncompressed tar archive) on top.
    pub fn layer(mut self, tar: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((compression, tar));
        self
    }

    /// The image's blobs, configuration and manifest last, as (media type, bytes).
    pub fn blobs(&self) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
        let mut blobs = Vec::new();
        let mut diff_ids = Vec::new();
        for (compression, tar) in &self.layers {
            diff_ids.push(digest(tar));
            blobs.push(compress(*compression, tar)?);
        }
        let descriptors: Vec<Value> = blobs.iter().map(|(t, b)| descriptor(t, b)).collect();
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config_type = "application/vnd.oci.image.config.v1+json";
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config_type, &config),
            "layers": descriptors,
        });
        blobs.push((config_type, config));
        blobs.push((MANIFEST, manifest.to_string().into_bytes()));
        Ok(blobs)
    }

    /// The image as an OCI image layout in a tar archive.
    pub fn archive(&self) -> io::Result<Vec<u8>> {
        let blobs = self.blobs()?;
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for (_, bytes) in &blobs {
            append(
                &mut tar,
                &format!("blobs/{}", digest(bytes).replace(':', "/")),
                bytes,
            )?;
        }
        let (kind, manifest) = blobs.last().expect("a manifest is always there");
        let mut entry = descriptor(kind, manifest);
        entry["annotations"] = json!({
            "org.opencontainers.image.ref.name": self.reference,
            "io.containerd.image.name": self.reference,
        });
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        append(&mut tar, "index.json", index.to_string().as_bytes())?;
        tar.into_inner()
    }
}

impl ImageBuilder {
    /// The image as `docker save` wrote it before Docker 25: plain layers and the
    /// configuration, listed in `manifest.json` (image-spec of Docker, v1.2).
    pub fn docker_archive(&self) -> io::Result<Vec<u8>> {
        let (kind, config) = self.blobs()?.swap_remove(self.layers.len());
        debug_assert!(kind.ends_with("config.v1+json"));
        let mut tar = Builder::new(Vec::new());
        let mut paths = Vec::new();
        for (_, layer) in &self.layers {
            let path = format!("{}/layer.tar", hex(layer));
            append(&mut tar, &path, layer)?;
            paths.push(path);
        }
        let config_path = format!("{}.json", hex(&config));
        append(&mut tar, &config_path, &config)?;
        let manifest = json!([{
            "Config": config_path,
            "RepoTags": [self.reference],
            "Layers": paths,
        }]);
        append(&mut tar, "manifest.json", manifest.to_string().as_bytes())?;
        tar.into_inner()
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|b| format!("{b:02x}")).collect()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn compress(how: Compression, tar: &[u8]) -> io::Result<(&'static str, Vec<u8>)> {
    Ok(match how {
        Compression::None => ("application/vnd.oci.image.layer.v1.tar", tar.to_vec()),
        Compression::Gzip => {
            let level = flate2::Compression::fast();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(tar)?;
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                gzip.finish()?,
            )
        }
        Compression::Zstd => (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            zstd::encode_all(tar, 1)?,
        ),
    })
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}
