//! Documents, good and bad.

use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn descriptor(media_type: &str) -> String {
    format!(r#"{{"mediaType": "{media_type}", "digest": "{DIGEST}", "size": 3}}"#)
}

fn manifest(layer_type: &str) -> String {
    format!(
        r#"{{"schemaVersion": 2, "config": {}, "layers": [{}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json"),
        descriptor(layer_type)
    )
}

fn refusal(text: &str, media_type: Option<&str>) -> ManifestError {
    Document::parse(text.as_bytes(), media_type).expect_err("refused")
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[test]
fn manifest_and_index_are_told_apart() {
    let parsed = Document::parse(manifest(LAYER).as_bytes(), Some(MANIFEST)).unwrap();
    assert!(matches!(parsed, Document::Manifest(m) if m.layers.len() == 1));
    let index = format!(
        r#"{{"schemaVersion": 2, "manifests": [{}]}}"#,
        descriptor(MANIFEST)
    );
    let parsed = Document::parse(index.as_bytes(), Some(INDEX)).unwrap();
    assert!(matches!(parsed, Document::Index(m) if m.len() == 1));
}

#[test]
fn ambiguous_and_mislabelled_documents_are_refused() {
    let both = manifest(LAYER).replacen('{', r#"{"manifests": [],"#, 1);
    assert!(matches!(
        refusal(&both, None),
        ManifestError::Ambiguous { .. }
    ));
    assert!(matches!(
        refusal(&manifest(LAYER), Some(INDEX)),
        ManifestError::Ambiguous { .. }
    ));
    let lying = manifest(LAYER).replacen('{', &format!(r#"{{"mediaType": "{INDEX}","#), 1);
    assert!(matches!(
        refusal(&lying, Some(MANIFEST)),
        ManifestError::Ambiguous { .. }
    ));
    assert!(matches!(
        refusal("{}", None),
        ManifestError::Ambiguous { .. }
    ));
    assert!(matches!(refusal("[", None), ManifestError::Json { .. }));
}

#[test]
fn other_media_types_are_refused() {
    let text = manifest("application/vnd.oci.image.layer.v1.tar+encrypted");
    assert!(matches!(
        refusal(&text, None),
        ManifestError::MediaType { .. }
    ));
    assert!(matches!(
        refusal(
            &manifest(LAYER),
            Some("application/vnd.cncf.helm.config.v1+json")
        ),
        ManifestError::MediaType { .. }
    ));
    let old = r#"{"schemaVersion": 1, "fsLayers": []}"#;
    assert!(matches!(
        refusal(old, None),
        ManifestError::Schema { version: 1, .. }
    ));
}

#[test]
fn layers_must_be_some_and_not_too_many() {
    let config = descriptor("application/vnd.oci.image.config.v1+json");
    let with = |layers: &str| {
        format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layers}]}}"#)
    };
    assert!(matches!(
        refusal(&with(""), None),
        ManifestError::Layers { count: 0, .. }
    ));
    let many = vec![descriptor(LAYER); MAX_LAYERS + 1].join(",");
    assert!(matches!(
        refusal(&with(&many), None),
        ManifestError::Layers { .. }
    ));
}

#[test]
fn entries_for_this_machine_are_chosen() {
    let entry = |platform: &str| -> Descriptor {
        let text = descriptor(MANIFEST).replacen('{', &format!("{{{platform}"), 1);
        serde_json::from_str(&text).unwrap()
    };
    let machine = Platform::machine();
    let own = entry(&format!(
        r#""platform": {{"os": "linux", "architecture": "{}"}},"#,
        machine.architecture
    ));
    let other = entry(r#""platform": {"os": "linux", "architecture": "s390x"},"#);
    let none = entry("");
    let provenance =
        entry(r#""annotations": {"vnd.docker.reference.type": "attestation-manifest"},"#);
    let all = [other.clone(), none.clone(), own.clone(), provenance];
    assert_eq!(for_this_machine(&all).unwrap(), [&own, &none]);
    let error = for_this_machine(&[other]).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("the image is for linux/s390x, this machine runs {machine}")
    );
}

#[test]
fn configuration_of_docker_with_nulls_is_read() {
    let machine = Platform::machine().architecture;
    let text = format!(
        r#"{{"architecture": "{machine}", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {{"User": "", "Env": ["PATH=/bin"], "Cmd": ["sh"], "Entrypoint": null,
        "ExposedPorts": {{"80/tcp": {{}}}}, "Volumes": null, "Labels": null,
        "WorkingDir": "/w", "StopSignal": "SIGQUIT", "OnBuild": null, "Hostname": "x"}},
        "rootfs": {{"type": "layers", "diff_ids": ["{DIGEST}"]}}, "history": []}}"#
    );
    let config = ConfigFile::parse(text.as_bytes()).unwrap();
    assert_eq!(config.diff_ids().len(), 1);
    assert_eq!(config.config.exposed_ports, ["80/tcp"]);
    assert_eq!(config.config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert!(config.config.entrypoint.is_empty() && config.config.volumes.is_empty());
    let stored = serde_json::to_string(&config.config).unwrap();
    assert_eq!(
        serde_json::from_str::<ImageConfig>(&stored).unwrap(),
        config.config
    );
}

#[test]
fn configuration_for_another_machine_is_refused() {
    let text = format!(
        r#"{{"architecture": "riscv64", "os": "linux", "rootfs": {{"diff_ids": ["{DIGEST}"]}}}}"#
    );
    let error = ConfigFile::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(
        error.starts_with("the image is for linux/riscv64, this machine runs linux/"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn parsers_survive_any_text(text in "[{\\[\"a-z:,0-9 \\]}]{0,80}") {
        let _ = Document::parse(text.as_bytes(), None).is_ok();
        let _ = ConfigFile::parse(text.as_bytes()).is_ok();
    }
}
