//! The node's own credentials, from a file as docker writes it.

use std::fs;

use image_store::{Config, Credentials};

use crate::{Fixture, chain, image::TestImage, scripted::Server};

/// A store whose credentials file has this entry for `reg.test`.
fn fixture(hosts: &str, auths: &str) -> Fixture {
    Fixture::with(hosts, |dir| {
        let file = dir.join("config.json");
        fs::write(&file, format!("{{\"auths\": {{{auths}}}}}")).unwrap();
        Config {
            credentials_file: Some(file),
            ..Config::default()
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_without_credentials_uses_those_of_the_file() {
    let image = TestImage::new(1, 10);
    let server = Server::start(image.content("app", "1"));
    server.require_token("secret-token", "user", "pass");
    let hosts = format!("server = \"http://{}\"", server.address());
    let fixture = fixture(&hosts, r#""reg.test": {"auth": "dXNlcjpwYXNz"}"#);
    fixture.pull("reg.test/app:1").await.unwrap();
    // Those of the request come first.
    let wrong = Credentials::Basic {
        username: "user".into(),
        password: "wrong".into(),
    };
    let result = fixture
        .store
        .pull("reg.test/app:1", Some(wrong), |_| {})
        .await;
    let text = chain(&result.unwrap_err());
    assert!(text.contains("denies access"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirror_gets_only_what_the_file_has_under_its_own_name() {
    let image = TestImage::new(1, 10);
    let mirror = Server::start(image.content("app", "1"));
    mirror.require_token("secret-token", "user", "pass");
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n",
        mirror.address()
    );
    let other = fixture(&hosts, r#""reg.test": {"auth": "dXNlcjpwYXNz"}"#);
    other.refusal("reg.test/app:1").await;
    assert!(!mirror.requests("/token").is_empty());
    for request in mirror.requests("") {
        assert!(!request.contains("authorization"), "{request}");
    }
    let own = format!(r#""{}": {{"auth": "dXNlcjpwYXNz"}}"#, mirror.address());
    fixture(&hosts, &own).pull("reg.test/app:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_that_cannot_be_used_is_named() {
    let text = fixture("", r#""reg.test": {"auth": "?"}"#)
        .refusal("reg.test/app:1")
        .await;
    assert!(
        text.contains("config.json") && text.contains("reg.test"),
        "{text}"
    );
}
