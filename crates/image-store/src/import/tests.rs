//! Whole archives into a store: what comes out, and that nothing stays behind
//! of what is refused.

use std::{fs, io::Write, os::unix::fs::FileExt, path::PathBuf};

use serde_json::{Value, json};
use state_store::StateStore;

use super::*;
use crate::config::ImageLimits;

/// A store in a directory of its own.
struct Fixture {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
        let store = ImageStore::open(dir.path(), state, config).unwrap();
        Self { dir, store }
    }

    /// The same directory after the daemon went away.
    fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
        let store = ImageStore::open(dir.path(), state, Config::default()).unwrap();
        Self { dir, store }
    }

    /// Paths of all files below `images`.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut pending = vec![self.dir.path().join("images")];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path)
                } else {
                    files.push(path)
                }
            }
        }
        files
    }

    fn expect_empty(&self) {
        assert_eq!(self.files(), Vec::<PathBuf>::new());
        assert!(self.store.list().unwrap().is_empty());
    }

    fn refusal(&self, archive: &[u8]) -> String {
        let error = self.store.import(archive, None).expect_err("refused");
        self.expect_empty();
        chain(&error)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn architecture() -> String {
    crate::manifest::Platform::machine().architecture
}

fn config_of(layers: &[Vec<u8>]) -> Value {
    json!({
        "architecture": architecture(), "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| Digest::of(l)).collect::<Vec<_>>()},
    })
}

fn docker_archive(config: &Value, layers: &[Vec<u8>], tags: Value) -> Vec<u8> {
    let names: Vec<_> = (0..layers.len())
        .map(|n| format!("{n}/layer.tar"))
        .collect();
    let manifest =
        json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]).to_string();
    let config = config.to_string();
    let mut files: Vec<(&str, &[u8])> = vec![("config.json", config.as_bytes())];
    files.extend(
        names
            .iter()
            .zip(layers)
            .map(|(name, layer)| (name.as_str(), &layer[..])),
    );
    files.push(("manifest.json", manifest.as_bytes()));
    tar(&files)
}

fn simple_docker_archive() -> Vec<u8> {
    let layers = [
        tar(&[("bin/sh", b"shell"), ("etc/x", b"1")]),
        tar(&[("etc/.wh.x", b"")]),
    ];
    docker_archive(&config_of(&layers), &layers, json!(["app:1"]))
}

/// Files of an OCI layout, to be changed before they are packed.
struct Layout {
    files: Vec<(String, Vec<u8>)>,
}

impl Layout {
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.files
            .push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn manifest(&mut self, config: &Value, layers: &[Vec<u8>]) -> Value {
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", layer))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    fn pack(mut self, entries: &[Value]) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        self.files.push(("index.json".into(), index.into_bytes()));
        self.files.push((
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ));
        let files: Vec<_> = self
            .files
            .iter()
            .map(|(n, c)| (n.as_str(), &c[..]))
            .collect();
        tar(&files)
    }
}

fn simple_layout(change: impl FnOnce(&mut Layout, &mut Value)) -> Vec<u8> {
    let layer = tar(&[("hello", b"world")]);
    let mut layout = Layout { files: Vec::new() };
    let mut entry = layout.manifest(&config_of(std::slice::from_ref(&layer)), &[gzip(&layer)]);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "host.test/app:1"});
    change(&mut layout, &mut entry);
    layout.pack(&[entry])
}

fn expect_erofs(fixture: &Fixture, image: &Image) {
    let file = fixture.store.open_rootfs(image).unwrap();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 1024).unwrap();
    assert_eq!(u32::from_le_bytes(magic), 0xe0f5_e1e2);
    assert_eq!(file.metadata().unwrap().len(), image.size);
    assert!(
        file.write_at(b"x", 0).is_err(),
        "the file is open for writing"
    );
}

#[test]
fn docker_archive_becomes_an_image() {
    let fixture = Fixture::new();
    let images = fixture
        .store
        .import(&simple_docker_archive()[..], None)
        .unwrap();
    let [image] = &images[..] else {
        panic!("{images:?}")
    };
    assert_eq!(image.tags, ["app:1"]);
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(image.created_at_ns, 1_704_067_200_000_000_000);
    expect_erofs(&fixture, image);
    for name in [
        "app:1",
        &image.id.to_string(),
        &image.id.hex()[..6],
        &image.id.to_string()[..12],
    ] {
        assert_eq!(
            fixture.store.get(name).unwrap().as_ref(),
            Some(image),
            "{name}"
        );
    }
    for name in ["app", "app:2", "ffff", &format!("app@{}", image.id)] {
        assert_eq!(fixture.store.get(name).unwrap(), None, "{name}");
    }
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.list().unwrap(), images);
    expect_erofs(&fixture, image);
}

#[test]
fn compressed_archives_give_the_same_image() {
    let plain = simple_docker_archive();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let ids: Vec<_> = [plain.clone(), gzip(&plain), zstd]
        .iter()
        .map(|archive| Fixture::new().store.import(&archive[..], None).unwrap()[0].id)
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn layout_becomes_an_image_with_its_digest() {
    let fixture = Fixture::new();
    let archive = simple_layout(|_, _| {});
    let image = fixture
        .store
        .import(&archive[..], Some("other"))
        .unwrap()
        .remove(0);
    assert_eq!(image.tags, ["host.test/app:1", "other:latest"]);
    assert_eq!(image.digests.len(), 2);
    assert_eq!(
        fixture.store.get(&image.digests[0]).unwrap(),
        Some(image.clone())
    );
    expect_erofs(&fixture, &image);
    // Again: nothing changes.
    assert_eq!(fixture.store.import(&archive[..], None).unwrap(), [image]);
}

#[test]
fn index_within_the_index_leads_to_this_machines_image() {
    let layer = tar(&[("hello", b"world")]);
    let mut layout = Layout { files: Vec::new() };
    let mut own = layout.manifest(&config_of(std::slice::from_ref(&layer)), &[gzip(&layer)]);
    own["platform"] = json!({"os": "linux", "architecture": architecture()});
    let mut other = own.clone();
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    other["digest"] = json!(Digest::of(b"not in the archive"));
    let index = json!({"schemaVersion": 2, "manifests": [other, own]}).to_string();
    let entry = layout.blob("application/vnd.oci.image.index.v1+json", index.as_bytes());
    let fixture = Fixture::new();
    let image = fixture
        .store
        .import(&layout.pack(&[entry])[..], Some("x.test/multi"))
        .unwrap()
        .remove(0);
    assert_eq!(
        image.digests,
        [format!("x.test/multi@{}", Digest::of(index.as_bytes()))]
    );
    expect_erofs(&fixture, &image);
}

#[test]
fn images_of_other_machines_are_refused_by_name() {
    let layer = tar(&[("a", b"b")]);
    let mut config = config_of(std::slice::from_ref(&layer));
    config["architecture"] = json!("s390x");
    let expected = format!(
        "the image is for linux/s390x, this machine runs linux/{}",
        architecture()
    );
    let text = Fixture::new().refusal(&docker_archive(
        &config,
        std::slice::from_ref(&layer),
        json!(["a:1"]),
    ));
    assert!(text.contains(&expected), "{text}");
    let mut layout = Layout { files: Vec::new() };
    let mut entry = layout.manifest(&config, &[layer]);
    let text = Fixture::new().refusal(
        &Layout {
            files: layout.files.clone(),
        }
        .pack(&[entry.clone()]),
    );
    assert!(text.contains(&expected), "{text}");
    entry["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let text = Fixture::new().refusal(&layout.pack(&[entry]));
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn wrong_digests_and_sizes_are_refused() {
    let fixture = Fixture::new();
    let text = fixture.refusal(&simple_layout(|layout, _| {
        let layer = layout
            .files
            .iter_mut()
            .find(|(_, content)| content.starts_with(&[0x1f, 0x8b]));
        layer.unwrap().1.push(0);
    }));
    assert!(text.contains("came for sha256:"), "{text}");
    let text = fixture.refusal(&simple_layout(|_, entry| entry["size"] = json!(5)));
    assert!(text.contains("came for sha256:"), "{text}");
    let text = fixture.refusal(&simple_layout(|_, entry| {
        entry["digest"] = json!(Digest::of(b"?"))
    }));
    assert!(text.contains("has no file"), "{text}");

    let layers = [tar(&[("a", b"b")])];
    let other = [tar(&[("a", b"c")])];
    let text = fixture.refusal(&docker_archive(&config_of(&other), &layers, json!(null)));
    assert!(text.contains("its content has the digest"), "{text}");
    let two = [layers[0].clone(), layers[0].clone()];
    let text = fixture.refusal(&docker_archive(&config_of(&two), &layers, json!(null)));
    assert!(text.contains("has 1 layers, its configuration 2"), "{text}");
}

#[test]
fn hostile_layers_leave_nothing_behind() {
    let fixture = Fixture::new();
    let mut evil = ::tar::Header::new_gnu();
    evil.set_size(0);
    evil.as_mut_bytes()[..11].copy_from_slice(b"../../etc/x");
    evil.set_cksum();
    let good = tar(&[("big", &[1; 100_000])]);
    let traversal = [&good[..good.len() - 1024], evil.as_bytes(), &[0; 1024]].concat();
    let layers = [good.clone(), traversal.clone()];
    let text = fixture.refusal(&docker_archive(
        &config_of(&layers),
        &layers,
        json!(["a:1"]),
    ));
    assert!(text.contains(&Digest::of(&traversal).to_string()), "{text}");
    assert!(
        text.contains("../../etc/x") && text.contains("out of the image"),
        "{text}"
    );

    let truncated = [good[..50_000].to_vec()];
    let text = fixture.refusal(&docker_archive(
        &config_of(&truncated),
        &truncated,
        json!(null),
    ));
    assert!(text.contains("ends in the middle"), "{text}");

    let packed = gzip(&good);
    let cut = [packed[..packed.len() - 5].to_vec()];
    let text = fixture.refusal(&docker_archive(&config_of(&cut), &cut, json!(null)));
    assert!(text.contains("is refused"), "{text}");
}

#[test]
fn bombs_are_refused_at_the_limits() {
    let limits = ImageLimits {
        max_unpacked_bytes: 1 << 20,
        max_members: 100,
        ..ImageLimits::default()
    };
    let fixture = Fixture::with(Config {
        limits,
        ..Config::default()
    });
    let bomb = tar(&[("zeros", &vec![0; 2 << 20])]);
    let config = config_of(std::slice::from_ref(&bomb));
    let text = fixture.refusal(&docker_archive(&config, &[gzip(&bomb)], json!(null)));
    // The contents, or the stream that runs ahead of them.
    assert!(text.contains("limit of 1"), "{text}");

    // All padding: no file, but no end either.
    let padding = vec![0; 4 << 20];
    let config = config_of(std::slice::from_ref(&padding));
    let text = fixture.refusal(&docker_archive(&config, &[gzip(&padding)], json!(null)));
    assert!(text.contains("over the limit of"), "{text}");

    let names: Vec<_> = (0..101).map(|n| format!("f{n}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let many = [tar(&many)];
    let text = fixture.refusal(&docker_archive(&config_of(&many), &many, json!(null)));
    assert!(text.contains("more than 100 members"), "{text}");

    let limits = ImageLimits {
        max_document_bytes: 50,
        ..ImageLimits::default()
    };
    let fixture = Fixture::with(Config {
        limits,
        ..Config::default()
    });
    assert!(
        fixture
            .refusal(&simple_docker_archive())
            .contains("over the limit of 50")
    );
    let limits = ImageLimits {
        max_compressed_bytes: 500,
        ..ImageLimits::default()
    };
    let fixture = Fixture::with(Config {
        limits,
        ..Config::default()
    });
    assert!(
        fixture
            .refusal(&simple_docker_archive())
            .contains("over the limit of 500")
    );
}

#[test]
fn archives_of_something_else_are_refused() {
    let fixture = Fixture::new();
    assert!(fixture.refusal(b"").contains("neither an index.json"));
    assert!(
        fixture
            .refusal(&tar(&[("a", b"b")]))
            .contains("neither an index.json")
    );
    assert!(fixture.refusal(&[7; 5000]).contains("checksum"));
    assert!(
        fixture
            .refusal(&tar(&[("manifest.json", b"[]")]))
            .contains("lists no image")
    );
    assert!(
        fixture
            .refusal(&tar(&[("manifest.json", b"{")]))
            .contains("manifest.json is not valid")
    );
    assert!(
        fixture
            .refusal(&gzip(&simple_docker_archive())[..300])
            .contains("cannot be read")
    );
}

#[test]
fn nested_indexes_have_a_limit() {
    let mut layout = Layout { files: Vec::new() };
    let layer = tar(&[("a", b"b")]);
    let mut entry = layout.manifest(&config_of(std::slice::from_ref(&layer)), &[layer]);
    for _ in 0..5 {
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        entry = layout.blob("application/vnd.oci.image.index.v1+json", index.as_bytes());
    }
    assert!(
        Fixture::new()
            .refusal(&layout.pack(&[entry]))
            .contains("nested deeper")
    );
}

#[test]
fn second_image_of_an_archive_may_share_files_with_the_first() {
    let layer = tar(&[("shared", b"x")]);
    let mut layout = Layout { files: Vec::new() };
    let mut config = config_of(std::slice::from_ref(&layer));
    let mut first = layout.manifest(&config, std::slice::from_ref(&layer));
    config["config"]["Cmd"] = json!(["other"]);
    let mut second = layout.manifest(&config, &[layer]);
    first["annotations"] = json!({"io.containerd.image.name": "h.test/one:1"});
    second["annotations"] = json!({"io.containerd.image.name": "h.test/two:1"});
    let fixture = Fixture::new();
    let archive = layout.pack(&[first, second]);
    let images = fixture.store.import(&archive[..], None).unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images[0].chain_id, images[1].chain_id);
    assert_eq!(
        fixture
            .store
            .inner
            .builds_done
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    let error = fixture
        .store
        .import(&archive[..], Some("name"))
        .unwrap_err();
    assert!(chain(&error).contains("holds 2 images"), "{error}");
    // Removing one leaves the other whole.
    fixture.store.remove("h.test/one:1").unwrap();
    expect_erofs(&fixture, &images[1]);
    fixture.store.remove("h.test/two:1").unwrap();
    fixture.expect_empty();
}

#[test]
fn image_in_use_stays_until_it_is_released() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let image = store
        .import(&simple_docker_archive()[..], None)
        .unwrap()
        .remove(0);
    store.lease(&image.id, "pod-1").unwrap();
    store.lease(&image.id, "pod-2").unwrap();
    let error = store.remove(&image.id.to_string()).unwrap_err();
    assert!(
        error.to_string().contains("in use by pod-1, pod-2"),
        "{error}"
    );
    let removed = store.remove("app:1").unwrap();
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec!["app:1".to_owned()], None)
    );
    store.gc().unwrap();
    expect_erofs(&fixture, &image);
    store.release("pod-1").unwrap();
    expect_erofs(&fixture, &image);
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.lease_owners().unwrap(), ["pod-2"]);
    expect_erofs(&fixture, &image);
    fixture.store.release("pod-2").unwrap();
    fixture.expect_empty();
    assert!(matches!(
        fixture.store.lease(&image.id, "x"),
        Err(ImageError::NotFound { .. })
    ));
    assert!(matches!(
        fixture.store.remove("app:1"),
        Err(ImageError::NotFound { .. })
    ));
}

#[test]
fn forgotten_image_loses_all_names_at_once_and_its_data_when_free() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let archive = simple_docker_archive();
    let id = store.import(&archive[..], Some("second")).unwrap()[0].id;
    store.lease(&id, "pod-1").unwrap();
    let removed = store.forget("second").unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted), (2, None));
    let image = store.get(&id.to_string()).unwrap().unwrap();
    assert!(image.unwanted && image.tags.is_empty());
    expect_erofs(&fixture, &image);
    // A name makes it wanted again.
    assert!(!store.import(&archive[..], None).unwrap()[0].unwanted);
    store.forget(&id.to_string()).unwrap();
    store.release("pod-1").unwrap();
    fixture.expect_empty();
    store.import(&archive[..], None).unwrap();
    assert_eq!(store.forget("app:1").unwrap().deleted, Some(id));
    fixture.expect_empty();
    assert_eq!(store.forget("app:1").unwrap(), crate::Removed::default());
}

/// An image whose only layer has a file of that text, named `h.test/<name>:1`.
fn import_named(store: &ImageStore, name: &str) -> Image {
    let layers = [tar(&[("f", name.as_bytes())])];
    let tags = json!([format!("h.test/{name}:1")]);
    let archive = docker_archive(&config_of(&layers), &layers, tags);
    store.import(&archive[..], None).unwrap().remove(0)
}

#[test]
fn collection_takes_the_least_recently_used_and_none_in_use_or_pinned() {
    let fixture = Fixture::with(Config {
        pinned: vec!["h.test/pinned:1".parse().unwrap()],
        ..Config::default()
    });
    let store = &fixture.store;
    let [used, pinned, old, new] =
        ["used", "pinned", "old", "new"].map(|name| import_named(store, name));
    store.lease(&used.id, "pod-1").unwrap();
    // Older by its import, not by its use.
    store.lease(&old.id, "pod-2").unwrap();
    store.release("pod-2").unwrap();
    let footprint = store.footprint().unwrap();
    assert_eq!((footprint.images, footprint.in_use), (4, 1));
    let reclaimable = footprint.reclaimable_bytes;
    assert!(reclaimable > 0 && reclaimable < footprint.bytes);

    // All are younger than an hour, and nothing is wanted of the others.
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!(store.collect(u64::MAX, hour).unwrap(), Default::default());
    let zero = std::time::Duration::ZERO;
    assert_eq!(store.collect(0, zero).unwrap(), Default::default());

    let first = store.collect(1, zero).unwrap();
    let ids = |images: &[Image]| images.iter().map(|i| i.id).collect::<Vec<_>>();
    assert_eq!(ids(&first.images), [new.id]);
    assert_eq!(first.images[0].tags, ["h.test/new:1"]);
    let rest = store.collect(u64::MAX, zero).unwrap();
    assert_eq!(ids(&rest.images), [old.id]);
    assert_eq!(first.freed_bytes + rest.freed_bytes, reclaimable);
    assert!(store.get("h.test/old:1").unwrap().is_none());
    for image in [&used, &pinned] {
        expect_erofs(&fixture, image);
    }
    store.release("pod-1").unwrap();
    assert_eq!(
        ids(&store.collect(u64::MAX, zero).unwrap().images),
        [used.id]
    );
    let fixture = fixture.reopen();
    let left: Vec<_> = fixture.store.list().unwrap();
    assert_eq!(ids(&left), [pinned.id]);
}

#[test]
fn a_disk_below_its_mark_loses_nothing() {
    let fixture = Fixture::new();
    import_named(&fixture.store, "a");
    let marks = |high| crate::Watermarks {
        high,
        low: 0,
        min_age: std::time::Duration::ZERO,
    };
    let used = fixture.store.disk().unwrap().used_percent();
    assert!(used < 100, "the disk of this test is full");
    assert_eq!(fixture.store.relieve(&marks(100)).unwrap(), None);
    assert_eq!(fixture.store.list().unwrap().len(), 1);
    let collected = fixture.store.relieve(&marks(0)).unwrap().unwrap();
    assert_eq!(collected.images.len(), 1);
    fixture.expect_empty();
}

#[test]
fn configuration_document_is_kept_as_it_came() {
    let fixture = Fixture::new();
    let image = fixture
        .store
        .import(&simple_docker_archive()[..], None)
        .unwrap()
        .remove(0);
    let document = fixture.store.config_document(&image).unwrap();
    assert_eq!(crate::Digest::of(&document), image.id);
    fixture.store.forget("app:1").unwrap();
    assert!(fixture.store.config_document(&image).is_err());
}

#[test]
fn last_name_takes_the_image_with_it_and_an_id_takes_all() {
    let fixture = Fixture::new();
    let archive = simple_docker_archive();
    let id = fixture.store.import(&archive[..], Some("second")).unwrap()[0].id;
    assert!(fixture.store.usage().unwrap().rootfs_bytes > 0);
    assert_eq!(fixture.store.remove("second").unwrap().deleted, None);
    assert_eq!(fixture.store.remove("app:1").unwrap().deleted, Some(id));
    fixture.expect_empty();
    fixture.store.import(&archive[..], Some("second")).unwrap();
    let removed = fixture.store.remove(&id.to_string()).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted), (2, Some(id)));
    fixture.expect_empty();
    assert_eq!(fixture.store.usage().unwrap(), crate::Usage::default());
}

#[test]
fn start_cleans_up_after_a_killed_daemon() {
    let fixture = Fixture::new();
    let image = fixture
        .store
        .import(&simple_docker_archive()[..], None)
        .unwrap()
        .remove(0);
    let whole = fixture.files().len();
    let images = fixture.dir.path().join("images");
    let stray = Digest::of(b"stray").hex();
    for path in [
        "tmp/half".to_owned(),
        format!("blobs/sha256/{stray}"),
        format!("erofs/{stray}.erofs"),
    ] {
        fs::write(images.join(path), b"half").unwrap();
    }
    let fixture = fixture.reopen();
    assert_eq!(fixture.files().len(), whole);
    expect_erofs(&fixture, &image);
    // A record without its file system is no image any more.
    fs::remove_file(images.join(format!("erofs/{}.erofs", image.chain_id.hex()))).unwrap();
    fixture.reopen().expect_empty();
}

#[test]
fn ambiguous_prefix_is_refused() {
    let fixture = Fixture::new();
    let mut ids = Vec::new();
    for n in 0.. {
        let layers = [tar(&[("n", format!("{n}").as_bytes())])];
        ids.push(Digest::of(config_of(&layers).to_string().as_bytes()).hex());
        let shared = ids.iter().any(|id| *id != ids[n] && id[..4] == ids[n][..4]);
        if !shared {
            continue;
        }
        // Found two that share four digits; import both.
        for m in 0..=n {
            if ids[m][..4] == ids[n][..4] {
                let layers = [tar(&[("n", format!("{m}").as_bytes())])];
                let archive = docker_archive(&config_of(&layers), &layers, json!(null));
                fixture.store.import(&archive[..], None).unwrap();
            }
        }
        let error = fixture.store.get(&ids[n][..4]).unwrap_err();
        assert!(
            matches!(error, ImageError::Ambiguous { count: 2, .. }),
            "{error}"
        );
        break;
    }
}

#[test]
fn discarded_layers_are_not_kept() {
    let fixture = Fixture::with(Config {
        discard_layers: true,
        ..Config::default()
    });
    let image = fixture
        .store
        .import(&simple_layout(|_, _| {})[..], None)
        .unwrap()
        .remove(0);
    expect_erofs(&fixture, &image);
    // Manifest, configuration, file system.
    assert_eq!(fixture.files().len(), 3);
}
