//! Images by the command line: import in every form, pull, list, remove, refuse.

use crate::Test;
use anyhow::{Context, ensure};
use serde_json::json;
use spherule_tests::Daemon;
use spherule_tests::manifest::{container, pod};
use test_images::{Compression, ImageBuilder, Layer, busybox_image};

pub(crate) const TESTS: &[Test] = &[
    ("stacked_layers_show_whiteouts_links_and_modes", layers),
    ("image_without_a_command_is_refused_by_name", no_command),
    ("image_for_another_architecture_is_refused", architecture),
    ("hostile_archives_are_refused_and_leave_nothing", hostile),
    ("image_in_use_is_not_deleted", in_use),
    ("import_reads_standard_input_and_directories", sources),
    ("docker_save_archive_is_imported_and_run", docker_save),
    ("volumes_of_an_image_stay_writable_and_show_it", volumes),
];

fn import(daemon: &Daemon, image: &ImageBuilder) -> anyhow::Result<spherule_tests::Ran> {
    let path = daemon.dir().join("image.tar");
    std::fs::write(&path, image.archive()?)?;
    daemon.cli(["import", path.to_str().context("plain path")?])
}

fn layers() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let lower = Layer::default()
        .dir("data", 0o755)?
        .file("data/gone", 0o644, b"x")?
        .file("data/kept", 0o640, b"kept")?
        .hard_link("data/linked", "data/kept")?
        .dir("data/opaque", 0o755)?
        .file("data/opaque/hidden", 0o644, b"x")?
        .into_bytes()?;
    let upper = Layer::default()
        .file("data/.wh.gone", 0o644, b"")?
        .dir("data/opaque", 0o755)?
        .file("data/opaque/.wh..wh..opq", 0o644, b"")?
        .file("data/opaque/shown", 0o600, b"y")?
        .into_bytes()?;
    let image = busybox_image("localhost/layers:1")?
        .layer(lower, Compression::Zstd)
        .layer(upper, Compression::None);
    import(&daemon, &image)?.ok()?;
    let script = "find /data | sort; stat -c '%a %h' /data/kept; cat /data/linked; echo";
    let c = container("c", script, json!({"image": "localhost/layers:1"}));
    let out = daemon
        .run(&pod("layers", &[c], json!({})))?
        .ok()?
        .replace("[c] ", "");
    let want = "/data\n/data/kept\n/data/linked\n/data/opaque\n/data/opaque/shown\n640 2\nkept\n";
    ensure!(out == want, "{out}");
    Ok(())
}

fn no_command() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let image = busybox_image("localhost/bare:1")?.config(json!({}));
    import(&daemon, &image)?.ok()?;
    let bare = json!({"name": "c", "image": "localhost/bare:1", "imagePullPolicy": "Never"});
    let ran = daemon.run(&pod("bare", &[bare], json!({})))?;
    ran.refused(&["command"])
}

fn architecture() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let image = busybox_image("localhost/arm:1")?.architecture("arm64");
    import(&daemon, &image)?.refused(&["arm64", "amd64"])?;
    ensure!(!daemon.cli(["images"])?.ok()?.contains("localhost/arm"));
    Ok(())
}

fn hostile() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let before = tree(&daemon.root().join("images"))?;
    let outside = Layer::default()
        .hard_link("inside", "../../outside")?
        .into_bytes()?;
    let image = ImageBuilder::new("localhost/hostile:1").layer(outside, Compression::Gzip);
    import(&daemon, &image)?.refused(&["outside"])?;
    let mut cut = busybox_image("localhost/cut:1")?.archive()?;
    cut.truncate(cut.len() / 2);
    let path = daemon.dir().join("cut.tar");
    std::fs::write(&path, cut)?;
    daemon
        .cli(["import", path.to_str().context("plain path")?])?
        .refused(&[])?;
    ensure!(
        tree(&daemon.root().join("images"))? == before,
        "something was left behind"
    );
    Ok(())
}

/// All paths below a directory, sorted.
pub(crate) fn tree(dir: &std::path::Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            paths.extend(tree(&path)?);
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

fn in_use() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let c = container("c", "echo up; exec sleep 1000", json!({}));
    daemon.run_detached(&pod("user", &[c], json!({})))?;
    daemon.wait_for("user", "running", |p| p["phase"] == "PHASE_RUNNING")?;
    let id = daemon.cli(["images", "--output", "json"])?.json()?[0]["id"].clone();
    let id = id.as_str().context("id")?;
    daemon.cli(["rmi", id])?.refused(&["in use"])?;
    daemon.cli(["rm", "--force", "user"])?.ok()?;
    daemon.cli(["rmi", id])?.ok()?;
    ensure!(daemon.cli(["images", "--output", "json"])?.json()? == json!([]));
    Ok(())
}

fn sources() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let archive = busybox_image("localhost/other:1")?.archive()?;
    let dir = daemon.dir().join("layout");
    tar::Archive::new(archive.as_slice()).unpack(&dir)?;
    daemon
        .cli(["import", dir.to_str().context("plain path")?])?
        .ok()?;
    ensure!(daemon.cli(["images"])?.ok()?.contains("localhost/other:1"));
    daemon.cli(["rmi", "localhost/other:1"])?.ok()?;
    let path = daemon.dir().join("other.tar");
    std::fs::write(&path, archive)?;
    let mut import = daemon.command(["import", "-"]);
    ensure!(import.stdin(std::fs::File::open(path)?).status()?.success());
    ensure!(daemon.cli(["images"])?.ok()?.contains("localhost/other:1"));
    Ok(())
}

fn docker_save() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let layer = Layer::default()
        .file("saved", 0o644, b"by docker save")?
        .into_bytes()?;
    let image = busybox_image("localhost/saved:1")?.layer(layer, Compression::Gzip);
    let path = daemon.dir().join("saved.tar");
    std::fs::write(&path, image.docker_archive()?)?;
    let shown = daemon
        .cli(["import", path.to_str().context("plain path")?])?
        .ok()?;
    ensure!(shown.contains("localhost/saved:1"), "{shown}");
    let c = container(
        "c",
        "cat /saved; echo",
        json!({"image": "localhost/saved:1"}),
    );
    let out = daemon.run(&pod("saved", &[c], json!({})))?.ok()?;
    ensure!(out == "[c] by docker save\n", "{out}");
    Ok(())
}

fn volumes() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let layer = Layer::default()
        .dir("data", 0o1777)?
        .file("data/seed", 0o644, b"from the image\n")?
        .into_bytes()?;
    let image = busybox_image("localhost/volumes:1")?
        .config(json!({"Env": ["PATH=/bin"], "Volumes": {"/data": {}, "new/deep": {}}}))
        .layer(layer, Compression::Gzip);
    import(&daemon, &image)?.ok()?;
    let script = "cat /data/seed; echo own >/data/seed; echo two >/new/deep/x; \
        cat /data/seed /new/deep/x; stat -c %a /data; touch /x 2>&1 | grep -o Read-only";
    let c = container(
        "c",
        script,
        json!({"image": "localhost/volumes:1",
            "securityContext": {"readOnlyRootFilesystem": true}}),
    );
    // The second pod finds nothing of the first one's.
    for name in ["volumes-1", "volumes-2"] {
        let out = daemon
            .run(&pod(name, std::slice::from_ref(&c), json!({})))?
            .ok()?;
        let out = out.replace("[c] ", "");
        let want = "from the image\nown\ntwo\n1777\nRead-only\n";
        ensure!(out == want, "{out}");
    }
    let image = busybox_image("localhost/volumes:2")?
        .config(json!({"Env": ["PATH=/bin"], "Volumes": {"/data/..": {}}}));
    import(&daemon, &image)?.ok()?;
    let c = container("c", "true", json!({"image": "localhost/volumes:2"}));
    daemon.run_detached(&pod("root-volume", &[c], json!({})))?;
    daemon.wait_for("root-volume", "refused by name", |p| {
        let message = p["containers"][0]["message"].as_str().unwrap_or_default();
        message.contains("root as a volume")
    })?;
    Ok(())
}
