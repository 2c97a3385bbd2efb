//! URLs, tokens and what begins a session.

use super::spdy_client::{ask, upgrade};
use super::{Fixture, websocket_client};
use crate::limits::Limits;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

async fn status(url: &str, headers: &str) -> String {
    let (_, head) = ask(url, headers).await;
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn url_is_good_once() {
    let fixture = Fixture::new().await;
    let url = fixture.exec("cat");
    let (_first, head) = ask(&url, &upgrade(V4)).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(status(&url, &upgrade(V4)).await, "404");
}

#[tokio::test]
async fn url_expires() {
    let limits = Limits {
        token_life: Duration::ZERO,
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    assert_eq!(status(&fixture.exec("cat"), &upgrade(V4)).await, "404");
}

#[tokio::test]
async fn forged_and_misused_urls_are_not_found() {
    let fixture = Fixture::new().await;
    let url = fixture.exec("cat");
    let (base, token) = url.rsplit_once('/').unwrap();
    let forged = format!("{base}/{}", "A".repeat(token.len()));
    assert_eq!(status(&forged, &upgrade(V4)).await, "404");
    let attach = url.replace("/exec/", "/attach/");
    assert_eq!(status(&attach, &upgrade(V4)).await, "404");
    for path in ["", "exec", "exec/", "exec/a/b", "other/x"] {
        let url = url.replace(&format!("exec/{token}"), path);
        assert_eq!(status(&url, &upgrade(V4)).await, "404", "{path}");
    }
    // None of that used it up.
    assert_eq!(status(&url, &upgrade(V4)).await, "101");
}

#[tokio::test]
async fn request_that_cannot_be_upgraded_leaves_the_url_good() {
    let fixture = Fixture::new().await;
    let url = fixture.exec("cat");
    assert_eq!(status(&url, "").await, "400");
    let (_, head) = ask(&url, &upgrade("v9.channel.k8s.io")).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert!(head.contains(V4), "{head}");
    let protocol = websocket_client::upgrade("v9.channel.k8s.io");
    assert_eq!(status(&url, &protocol).await, "403");
    assert_eq!(status(&url, &upgrade(V4)).await, "101");
}

#[tokio::test]
async fn http_nonsense_is_refused_and_the_connection_closed() {
    let fixture = Fixture::new().await;
    let url = fixture.exec("cat");
    let long = format!("X: {}\r\n", "x".repeat(100_000));
    let answered = status(&url, &long).await;
    assert!(["431", ""].contains(&answered.as_str()), "{answered}");
    let address = url.strip_prefix("http://").unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, b"\x16\x03\x01nonsense\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
}

#[tokio::test]
async fn client_that_does_not_ask_is_cut_off() {
    let limits = Limits {
        request: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let url = fixture.exec("cat");
    let address = url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address.split_once('/').unwrap().0)
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
}

#[tokio::test]
async fn waiting_requests_are_bounded() {
    let limits = Limits {
        tokens: 2,
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let url = fixture.exec("cat");
    fixture.exec("cat");
    let request = || crate::PortForwardRequest {
        sandbox: "s".into(),
        ports: Vec::new(),
    };
    fixture.urls.port_forward(request()).unwrap_err();
    assert_eq!(status(&url, &upgrade(V4)).await, "101");
    fixture.urls.port_forward(request()).unwrap();
}
