//! Images on a disk that gets full: what goes, what stays, and by hand.

use crate::Test;
use anyhow::{Context, ensure};
use serde_json::json;
use spherule_tests::manifest::{container, pod};
use spherule_tests::{Daemon, DaemonOptions, IMAGE};
use std::time::{Duration, Instant};
use test_images::{Compression, Layer, busybox_image, noise};

pub(crate) const TESTS: &[Test] = &[(
    "unused_images_make_room_the_least_recently_used_first",
    make_room,
)];

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(180);
/// Bytes of a file in each image, which no compression makes smaller: they lie on
/// the disk twice, in the layer and in the file system made of it.
const WEIGHT: usize = 7 << 20;

fn import(daemon: &Daemon, name: &str, seed: u64) -> anyhow::Result<()> {
    let layer = Layer::default()
        .file("weight", 0o644, &noise(seed, WEIGHT))?
        .into_bytes()?;
    let image = busybox_image(&format!("localhost/{name}:1"))?.layer(layer, Compression::None);
    let path = daemon.dir().join("image.tar");
    std::fs::write(&path, image.archive()?)?;
    daemon
        .cli(["import", path.to_str().context("plain path")?])?
        .ok()?;
    Ok(())
}

/// Names of the images, once there are so many.
fn images(daemon: &Daemon, count: usize) -> anyhow::Result<Vec<String>> {
    let started = Instant::now();
    loop {
        let listed = daemon.cli(["images", "--output", "json"])?.json()?;
        let listed = listed.as_array().context("a list")?;
        let mut names: Vec<String> = listed
            .iter()
            .map(|image| image["tags"][0].as_str().unwrap_or_default().to_owned())
            .collect();
        names.sort();
        if names.len() == count {
            return Ok(names);
        }
        ensure!(started.elapsed() < PATIENCE, "not {count} but {names:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn make_room() -> anyhow::Result<()> {
    let mut args = Vec::new();
    for (option, value) in [
        ("--image-gc-high", "55"),
        ("--image-gc-low", "45"),
        ("--image-gc-min-age", "0s"),
        ("--pinned-image", IMAGE),
    ] {
        args.extend([option.to_owned(), value.to_owned()]);
    }
    let daemon = Daemon::with(DaemonOptions {
        prepare: Some("mkdir $d/root; mount -t tmpfs -o size=48m,mode=0700 tmpfs $d/root".into()),
        args,
        ..DaemonOptions::default()
    })?;
    // One is a third of the disk, two are above the mark.
    import(&daemon, "first", 1)?;
    ensure!(images(&daemon, 2)? == [IMAGE, "localhost/first:1"]);
    import(&daemon, "second", 2)?;
    ensure!(images(&daemon, 2)? == [IMAGE, "localhost/second:1"]);

    // What a pod uses stays, though another is newer; so does what it will use.
    let with =
        |name: &str, script: &str| container(name, script, json!({"image": "localhost/second:1"}));
    let init = container("init", "sleep 100000", json!({}));
    let waiting = pod(
        "user",
        &[with("c", "echo started; sleep 100000")],
        json!({"initContainers": [init]}),
    );
    daemon.run_detached(&waiting)?;
    daemon.wait_for("user", "running", |p| {
        p["initContainers"][0]["state"] == "STATE_RUNNING"
    })?;
    import(&daemon, "third", 3)?;
    ensure!(images(&daemon, 2)? == [IMAGE, "localhost/second:1"]);

    let df = daemon.cli(["system", "df", "--output", "json"])?.json()?;
    ensure!(
        df["images"]["total"] == 2 && df["images"]["inUse"] == 2,
        "{df:#}"
    );
    ensure!(df["images"]["reclaimableBytes"] == 0, "{df:#}");
    ensure!(
        df["pods"]["total"] == 1 && df["pods"]["inUse"] == 1,
        "{df:#}"
    );
    let table = daemon.cli(["system", "df"])?.ok()?;
    ensure!(
        table.contains("Images") && table.contains("free"),
        "{table}"
    );
    ensure!(
        daemon
            .cli(["system", "prune"])?
            .ok()?
            .starts_with("freed 0")
    );
    images(&daemon, 2)?;

    daemon.cli(["rm", "--force", "user"])?.ok()?;
    let pruned = daemon
        .cli(["system", "prune", "--unused-for", "1h"])?
        .ok()?;
    ensure!(!pruned.contains("removed"), "{pruned}");
    let pruned = daemon.cli(["system", "prune"])?.ok()?;
    ensure!(pruned.contains("removed localhost/second:1"), "{pruned}");
    ensure!(images(&daemon, 1)? == [IMAGE]);
    Ok(())
}
