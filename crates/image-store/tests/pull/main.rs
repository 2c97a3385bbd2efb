//! Pulls from registries on loopback: a scripted one that fails and lies, and
//! Debian's `docker-registry` where it is installed.

#![expect(clippy::unwrap_used, reason = "a test")]

mod credentials;
mod given_up;
mod image;
mod real;
mod scripted;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use image_store::{
    Config, Credentials, Image, ImageError, ImageLimits, ImageStore, Progress, Status,
};
use state_store::StateStore;

use image::TestImage;
use scripted::{Reply, Server};

/// A store that reaches `reg.test` at the given addresses.
struct Fixture {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new(hosts_toml: &str) -> Self {
        Self::with(hosts_toml, |_| Config::default())
    }

    /// The configuration may name files in the directory.
    fn with(hosts_toml: &str, config: impl FnOnce(&Path) -> Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("certs.d/reg.test");
        fs::create_dir_all(&hosts).unwrap();
        fs::write(hosts.join("hosts.toml"), hosts_toml).unwrap();
        let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
        let config = Config {
            registries_dir: Some(dir.path().join("certs.d")),
            ..config(dir.path())
        };
        let store = ImageStore::open(dir.path(), state, config).unwrap();
        Self { dir, store }
    }

    fn for_server(server: &Server) -> Self {
        Self::new(&format!("server = \"http://{}\"", server.address()))
    }

    async fn pull(&self, name: &str) -> Result<Image, ImageError> {
        self.store.pull(name, None, |_| {}).await
    }

    async fn refusal(&self, name: &str) -> String {
        let text = chain(&self.pull(name).await.expect_err("refused"));
        assert_eq!(self.files(), Vec::<PathBuf>::new());
        assert!(self.store.list().unwrap().is_empty());
        text
    }

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
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_is_pulled_by_tag_and_by_digest() {
    let image = TestImage::new(3, 200_000);
    let server = Server::start(image.content("app", "1"));
    let fixture = Fixture::for_server(&server);
    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let log = Arc::clone(&seen);
    let progress = move |progress: &Progress| log.lock().unwrap().push(progress.clone());
    let pulled = fixture
        .store
        .pull("reg.test/app:1", None, progress)
        .await
        .unwrap();
    assert_eq!(pulled.tags, ["reg.test/app:1"]);
    assert_eq!(
        pulled.digests,
        [format!("reg.test/app@{}", image.manifest_digest())]
    );
    assert_eq!(
        fixture.store.get("reg.test/app:1").unwrap(),
        Some(pulled.clone())
    );
    assert!(fixture.store.open_rootfs(&pulled).is_ok());
    let count = |status| {
        seen.lock()
            .unwrap()
            .iter()
            .filter(|p| p.status == status)
            .count()
    };
    assert_eq!(
        (
            count(Status::Resolving),
            count(Status::Downloaded),
            count(Status::Unpacking)
        ),
        (1, 3, 1)
    );

    // Again: nothing but the documents is asked for.
    let before = server.requests("/blobs/").len();
    let name = format!("reg.test/app@{}", image.manifest_digest());
    assert_eq!(fixture.pull(&name).await.unwrap(), pulled);
    assert_eq!(
        server.requests("/blobs/").len(),
        before + 1,
        "only the configuration"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_that_pass_are_waited_out() {
    let image = TestImage::new(1, 300_000);
    let server = Server::start(image.content("app", "1"));
    let manifest = "/v2/app/manifests/1";
    server.next(manifest, Reply::Status(500, Vec::new()));
    server.next(
        manifest,
        Reply::Status(429, vec![("Retry-After".into(), "0".into())]),
    );
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(0));
    server.next(&layer, Reply::Cut(100_000));
    server.next(&layer, Reply::Status(503, Vec::new()));
    let fixture = Fixture::for_server(&server);
    fixture.pull("reg.test/app:1").await.unwrap();
    let ranges = server.requests(&layer);
    assert_eq!(ranges.len(), 3);
    assert!(ranges[2].contains("range: bytes="), "{}", ranges[2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_ranges_is_asked_for_the_whole_again() {
    let image = TestImage::new(1, 300_000);
    let server = Server::start(image.content("app", "1"));
    server.without_ranges();
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(0));
    server.next(&layer, Reply::Cut(100_000));
    Fixture::for_server(&server)
        .pull("reg.test/app:1")
        .await
        .unwrap();
    assert_eq!(server.requests(&layer).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_are_refused_and_leave_nothing_behind() {
    let image = TestImage::new(2, 50_000);
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(1));
    let good = image.layers[1].clone();
    let mut flipped = good.clone();
    flipped[40] ^= 1;
    let longer = [&good[..], b"x"].concat();
    let config = format!("/v2/app/blobs/{}", image.config_digest());
    for (path, body, expected) in [
        (layer.as_str(), flipped, "sent content with the digest"),
        (&layer, longer, "more than the"),
        (&config, b"{}".to_vec(), "came for"),
    ] {
        let mut content = image.content("app", "1");
        content.insert(path.to_owned(), body);
        let server = Server::start(content);
        let text = Fixture::for_server(&server).refusal("reg.test/app:1").await;
        assert!(text.contains(expected), "{text}");
    }
    // A manifest that is not the one asked for by its digest.
    let mut content = image.content("app", "1");
    let other = TestImage::new(1, 10);
    let asked = other.manifest_digest();
    content.insert(format!("/v2/app/manifests/{asked}"), image.manifest.clone());
    let server = Server::start(content);
    let text = Fixture::for_server(&server)
        .refusal(&format!("reg.test/app@{asked}"))
        .await;
    assert!(text.contains("asked for was"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_end_early_or_unpack_to_too_much_leave_nothing_behind() {
    let image = TestImage::new(2, 200_000);
    let mut content = image.content("app", "1");
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(1));
    content.insert(layer.clone(), image.layers[1][..1000].to_vec());
    let server = Server::start(content);
    let text = Fixture::for_server(&server).refusal("reg.test/app:1").await;
    assert!(text.contains("sent 1000 of"), "{text}");

    let server = Server::start(image.content("app", "1"));
    let hosts = format!("server = \"http://{}\"", server.address());
    let with = |limits: ImageLimits| {
        Fixture::with(&hosts, |_| Config {
            limits,
            ..Config::default()
        })
    };
    // Each layer is within it, both together are not.
    let unpacked = ImageLimits {
        max_unpacked_bytes: 300_000,
        ..ImageLimits::default()
    };
    let text = with(unpacked).refusal("reg.test/app:1").await;
    assert!(text.contains("limit"), "{text}");
    // What the manifest says is too much is not even begun.
    let compressed = ImageLimits {
        max_compressed_bytes: 300_000,
        ..ImageLimits::default()
    };
    let before = server.requests(&layer).len();
    let text = with(compressed).refusal("reg.test/app:1").await;
    assert!(text.contains("over the limit of 300000"), "{text}");
    assert_eq!(server.requests(&layer).len(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_redirects_and_lasting_failures_are_errors() {
    let image = TestImage::new(1, 10);
    let server = Server::start(image.content("app", "1"));
    let manifest = "/v2/app/manifests/1";
    for _ in 0..20 {
        server.next(
            manifest,
            Reply::Status(302, vec![("Location".into(), manifest.into())]),
        );
    }
    let fixture = Fixture::for_server(&server);
    let text = fixture.refusal("reg.test/app:1").await;
    assert!(
        text.contains("redirects in a way that is not followed"),
        "{text}"
    );

    let server = Server::start(image.content("app", "1"));
    for _ in 0..5 {
        let body = br#"{"errors":[{"code":"X","message":"out of order"}]}"#;
        server.next(manifest, Reply::Body(502, body.to_vec()));
    }
    let text = Fixture::for_server(&server).refusal("reg.test/app:1").await;
    assert!(text.contains("answered 502: out of order"), "{text}");
    assert_eq!(server.requests(manifest).len(), 5);

    let text = Fixture::for_server(&server)
        .refusal("reg.test/app:none")
        .await;
    assert!(text.contains("not found there"), "{text}");
    let text = Fixture::new("server = 'http://127.0.0.1:1'")
        .refusal("reg.test/app")
        .await;
    assert!(text.contains("the request failed"), "{text}");
    let text = Fixture::new("sever = 'http://127.0.0.1:1'")
        .refusal("reg.test/app")
        .await;
    assert!(text.contains("sever"), "{text}");
    let text = Fixture::for_server(&server).refusal("app").await;
    assert!(text.contains("names no registry"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_is_fetched_with_the_credentials() {
    let image = TestImage::new(1, 10);
    let server = Server::start(image.content("app", "1"));
    server.require_token("secret-token", "user", "pass");
    let fixture = Fixture::for_server(&server);
    let text = fixture.refusal("reg.test/app:1").await;
    assert!(text.contains("denies access"), "{text}");
    let with = |password: &str| {
        Some(Credentials::Basic {
            username: "user".into(),
            password: password.into(),
        })
    };
    let error = fixture
        .store
        .pull("reg.test/app:1", with("wrong"), |_| {})
        .await
        .unwrap_err();
    assert!(chain(&error).contains("denies access"), "{}", chain(&error));
    fixture
        .store
        .pull("reg.test/app:1", with("pass"), |_| {})
        .await
        .unwrap();
    let token = Some(Credentials::RegistryToken("secret-token".into()));
    fixture
        .store
        .pull("reg.test/app:1", token, |_| {})
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_that_expires_during_a_pull_is_replaced() {
    let image = TestImage::new(1, 300_000);
    let server = Server::start(image.content("app", "1"));
    server.require_token("first", "user", "pass");
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(0));
    server.next(&layer, Reply::Cut(100_000));
    let fixture = Fixture::for_server(&server);
    let store = fixture.store.clone();
    let credentials = Credentials::Basic {
        username: "user".into(),
        password: "pass".into(),
    };
    // Once the manifest is there, the first token is good no more.
    let expire = move |progress: &Progress| {
        if progress.status == Status::Downloading {
            server.require_token("second", "user", "pass");
        }
    };
    let name = "reg.test/app:1";
    store.pull(name, Some(credentials), expire).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_are_tried_in_order_and_get_no_credentials() {
    let image = TestImage::new(1, 10);
    let mut partial = image.content("app", "1");
    partial.remove(&format!("/v2/app/blobs/{}", image.layer_digest(0)));
    let mirror = Server::start(partial);
    let server = Server::start(image.content("app", "1"));
    server.require_token("secret-token", "user", "pass");
    let fixture = Fixture::new(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.address(),
        mirror.address()
    ));
    let credentials = Credentials::Basic {
        username: "user".into(),
        password: "pass".into(),
    };
    fixture
        .store
        .pull("reg.test/app:1", Some(credentials), |_| {})
        .await
        .unwrap();
    assert!(
        mirror
            .requests("")
            .iter()
            .all(|request| !request.contains("authorization"))
    );
    assert!(mirror.requests("/manifests/")[0].contains("?ns=reg.test"));
    assert!(server.requests("/manifests/").is_empty());
    assert!(!server.requests("/blobs/").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_of_one_image_at_once_share_the_work() {
    let image = TestImage::new(1, 2_000_000);
    let server = Server::start(image.content("app", "1"));
    server.next("/v2/app/manifests/1", Reply::Status(503, Vec::new()));
    let fixture = Fixture::for_server(&server);
    let pulls: Vec<_> = (0..5)
        .map(|_| {
            let store = fixture.store.clone();
            tokio::spawn(async move { store.pull("reg.test/app:1", None, |_| {}).await.unwrap() })
        })
        .collect();
    let mut ids = Vec::new();
    for pull in pulls {
        ids.push(pull.await.unwrap().id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(0));
    assert_eq!(server.requests(&layer).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_the_file_reach_their_host_and_its_token_service_only() {
    let image = TestImage::new(1, 10);
    let mirror = Server::start(HashMap::new());
    let server = Server::start(image.content("app", "1"));
    server.require_token("secret-token", "user", "pass");
    let fixture = Fixture::new(&format!(
        "server = \"http://{}\"\n[header]\nx-team = \"a\"\n[host.\"http://{}\".header]\nx-mirror = [\"b\", \"c\"]\n",
        server.address(),
        mirror.address()
    ));
    let credentials = Credentials::Basic {
        username: "user".into(),
        password: "pass".into(),
    };
    let pulled = fixture
        .store
        .pull("reg.test/app:1", Some(credentials), |_| {});
    pulled.await.unwrap();
    assert!(!server.requests("/token").is_empty());
    for request in server.requests("") {
        assert!(
            request.contains("x-team: a") && !request.contains("x-mirror"),
            "{request}"
        );
    }
    for request in mirror.requests("") {
        assert!(
            request.contains("x-mirror: b\nx-mirror: c") && !request.contains("x-team"),
            "{request}"
        );
    }
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).is_file())
    })
}
