//! A small image and its documents.

use std::{collections::HashMap, io::Write};

use image_store::Digest;
use serde_json::json;

pub(crate) struct TestImage {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl TestImage {
    /// An image of so many layers, each with a file of so many bytes that do
    /// not compress.
    pub(crate) fn new(layers: usize, file_len: usize) -> Self {
        let plain: Vec<_> = (0..layers).map(|n| layer(n, file_len)).collect();
        let layers: Vec<_> = plain.iter().map(|layer| gzip(layer)).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let diff_ids: Vec<_> = plain.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/f0"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers
                .iter()
                .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer))
                .collect::<Vec<_>>(),
        });
        Self {
            layers,
            config,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub(crate) fn config_digest(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub(crate) fn layer_digest(&self, index: usize) -> Digest {
        Digest::of(&self.layers[index])
    }

    /// Layers, configuration and manifest with their media types.
    pub(crate) fn blobs(&self) -> Vec<(&'static str, Vec<u8>)> {
        let layers = self
            .layers
            .iter()
            .map(|layer| ("application/vnd.oci.image.layer.v1.tar+gzip", layer));
        let documents = [
            ("application/vnd.oci.image.config.v1+json", &self.config),
            ("application/vnd.oci.image.manifest.v1+json", &self.manifest),
        ];
        let all = layers.chain(documents);
        all.map(|(kind, bytes)| (kind, bytes.clone())).collect()
    }

    /// What a registry has at which path.
    pub(crate) fn content(&self, repository: &str, tag: &str) -> HashMap<String, Vec<u8>> {
        let mut content = HashMap::new();
        for name in [tag.to_owned(), self.manifest_digest().to_string()] {
            content.insert(
                format!("/v2/{repository}/manifests/{name}"),
                self.manifest.clone(),
            );
        }
        for blob in self.layers.iter().chain([&self.config]) {
            content.insert(
                format!("/v2/{repository}/blobs/{}", Digest::of(blob)),
                blob.clone(),
            );
        }
        content
    }
}

fn layer(index: usize, file_len: usize) -> Vec<u8> {
    let mut state = index as u64 + 1;
    let content: Vec<u8> = (0..file_len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    builder
        .append_data(&mut header, format!("f{index}"), &content[..])
        .unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
