//! Pulls by the command line and by pods, from Debian's docker-registry.

use crate::Test;
use crate::images::tree;
use anyhow::ensure;
use serde_json::json;
use spherule_tests::manifest::{container, pod};
use spherule_tests::{Daemon, DaemonOptions, Ran, Registries};
use test_images::{Compression, Layer, Registry, busybox_image};

pub(crate) const TESTS: &[Test] = &[
    ("pulled_image_is_listed_and_runs", pulled),
    ("pull_policies_decide_when_a_moved_tag_is_seen", policies),
    ("missing_tag_and_dead_registry_are_told", failures),
];

/// The registry's name in references; hosts.toml says where it is.
const IMAGE: &str = "reg.test/team/app";

struct Fixture {
    registry: Option<Registry>,
    daemon: Daemon,
    _registries: Registries,
}

impl Fixture {
    fn new() -> anyhow::Result<Self> {
        let registry = Registry::start()?;
        let registries = Registries::plain("reg.test", registry.address())?;
        let daemon = Daemon::with(DaemonOptions {
            args: registries.args(),
            image: false,
            ..DaemonOptions::default()
        })?;
        Ok(Self {
            registry: Some(registry),
            daemon,
            _registries: registries,
        })
    }

    /// Puts an image with this content of /version under a tag.
    fn push(&self, tag: &str, version: &str) -> anyhow::Result<()> {
        let layer = Layer::default()
            .file("version", 0o644, format!("{version}\n").as_bytes())?
            .into_bytes()?;
        let image = busybox_image(IMAGE)?.layer(layer, Compression::Zstd);
        if let Some(registry) = &self.registry {
            registry.push("team/app", tag, &image.blobs()?)?;
        }
        Ok(())
    }

    /// Runs the image under a policy; the pod is gone afterwards.
    fn run(&self, tag: &str, policy: &str) -> anyhow::Result<Ran> {
        let extra = json!({"image": format!("{IMAGE}:{tag}"), "imagePullPolicy": policy});
        let c = container("c", "cat /version", extra);
        self.daemon
            .run_with(&pod("app", &[c], json!({})), &["--rm"])
    }

    /// The pod waits for its image and says why; then it is removed.
    fn waits(&self, tag: &str, policy: &str, words: &[&str]) -> anyhow::Result<()> {
        let extra = json!({"image": format!("{IMAGE}:{tag}"), "imagePullPolicy": policy});
        let c = container("c", "cat /version", extra);
        self.daemon.run_detached(&pod("waits", &[c], json!({})))?;
        let pod = self.daemon.wait_for("waits", "told why", |p| {
            let reason = p["containers"][0]["reason"].as_str().unwrap_or_default();
            reason == "ErrImagePull" || reason == "ImagePullBackOff"
        })?;
        let message = pod["containers"][0]["message"].as_str().unwrap_or_default();
        for word in words {
            ensure!(message.contains(word), "no {word:?} in {pod:#}");
        }
        self.daemon.cli(["rm", "--force", "waits"])?.ok()?;
        Ok(())
    }
}

fn pulled() -> anyhow::Result<()> {
    let f = Fixture::new()?;
    f.push("1", "one")?;
    let name = format!("{IMAGE}:1");
    let shown = f.daemon.cli(["pull", &name])?.ok()?;
    ensure!(shown.contains(&name), "{shown}");
    let images = f.daemon.cli(["images", "--output", "json"])?.json()?;
    ensure!(images[0]["tags"] == json!([name]), "{images:#}");
    ensure!(f.run("1", "Never")?.ok()? == "[c] one\n");
    Ok(())
}

fn policies() -> anyhow::Result<()> {
    let f = Fixture::new()?;
    f.push("1", "one")?;
    // Not here yet: pulled.
    ensure!(f.run("1", "IfNotPresent")?.ok()? == "[c] one\n");
    f.push("1", "two")?;
    ensure!(f.run("1", "IfNotPresent")?.ok()? == "[c] one\n");
    ensure!(f.run("1", "Always")?.ok()? == "[c] two\n");
    ensure!(f.run("1", "IfNotPresent")?.ok()? == "[c] two\n");
    Ok(())
}

fn failures() -> anyhow::Result<()> {
    let mut f = Fixture::new()?;
    f.push("1", "one")?;
    f.daemon.cli(["pull", &format!("{IMAGE}:1")])?.ok()?;
    let before = tree(&f.daemon.root().join("images"))?;

    let missing = format!("{IMAGE}:none");
    let ran = f.daemon.cli(["pull", &missing])?;
    ran.refused(&[missing.as_str(), "not found"])?;
    f.waits("none", "Always", &[&missing, "not found"])?;

    let address = f.registry.take().map(|r| r.address().to_owned());
    let address = address.unwrap_or_default();
    let ran = f.daemon.cli(["pull", &missing])?;
    ran.refused(&[missing.as_str(), &address, "refused"])?;
    f.waits("1", "Always", &[&address, "refused"])?;
    // What is here needs no registry.
    ensure!(f.run("1", "IfNotPresent")?.ok()? == "[c] one\n");

    let after = tree(&f.daemon.root().join("images"))?;
    ensure!(after == before, "before {before:?}, after {after:?}");
    Ok(())
}
