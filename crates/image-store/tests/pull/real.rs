//! Against Debian's `docker-registry`.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use image_store::Digest;

use crate::{Fixture, image::TestImage, is_installed};

const PROGRAM: &str = "docker-registry";

struct Registry {
    child: Child,
    base: String,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Gone already, if it failed to start.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    async fn start(client: &reqwest::Client) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let data = dir.path().join("data");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            data.display()
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new(PROGRAM)
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            child,
            base: format!("http://127.0.0.1:{port}"),
            _dir: dir,
        };
        for _ in 0..300 {
            if client
                .get(format!("{}/v2/", registry.base))
                .send()
                .await
                .is_ok()
            {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{PROGRAM} does not answer");
    }

    async fn push(&self, client: &reqwest::Client, repository: &str, tag: &str, image: &TestImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            let url = format!("{}/v2/{repository}/blobs/uploads/", self.base);
            let begun = client.post(url).send().await.unwrap();
            let location = begun.headers()["location"].to_str().unwrap().to_owned();
            let request = client
                .put(location)
                .query(&[("digest", Digest::of(blob).to_string())]);
            let done = request.body(blob.clone()).send().await.unwrap();
            assert_eq!(done.status(), 201);
        }
        let request = client
            .put(format!("{}/v2/{repository}/manifests/{tag}", self.base))
            .header("content-type", "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(
            request
                .body(image.manifest.clone())
                .send()
                .await
                .unwrap()
                .status(),
            201
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_is_pulled_from_a_real_registry() {
    if !is_installed(PROGRAM) {
        eprintln!("skipped: {PROGRAM} is not installed");
        return;
    }
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let registry = Registry::start(&client).await;
    let image = TestImage::new(4, 3_000_000);
    registry.push(&client, "team/app", "v1", &image).await;
    let fixture = Fixture::new(&format!("server = {:?}", registry.base));
    let pulled = fixture.pull("reg.test/team/app:v1").await.unwrap();
    assert_eq!(pulled.id, image.config_digest());
    assert_eq!(
        pulled.digests,
        [format!("reg.test/team/app@{}", image.manifest_digest())]
    );
    let text = fixture.pull("reg.test/team/app:v2").await.unwrap_err();
    assert!(crate::chain(&text).contains("not found there"), "{text:?}");
}
