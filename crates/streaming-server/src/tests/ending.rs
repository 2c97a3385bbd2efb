//! A server that ends tells its clients so.

use super::spdy_client::SpdyClient;
use super::websocket_client::WebSocketClient;
use super::{Fixture, REASON};
use crate::backend::AttachRequest;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";
const FORWARD: &str = "portforward.k8s.io";
const TYPES: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

/// The status says that the session failed, and why.
fn is_told(status: &[u8]) {
    let status: Value = serde_json::from_slice(status).unwrap();
    assert_eq!(status["status"], "Failure");
    assert_eq!(status["details"]["causes"][0]["message"], REASON);
}

#[tokio::test]
async fn sessions_end_with_the_reason_by_spdy() {
    let mut fixture = Fixture::new().await;
    // One that is silent, one that prints on and on.
    let mut clients = Vec::new();
    for command in ["sleep", "yes"] {
        let mut client = SpdyClient::connect(&fixture.exec(command), V4).await;
        client.open_types(&TYPES).await;
        clients.push(client);
    }
    fixture.backend.lives(2).await;
    fixture.end();
    for mut client in clients {
        let heard = client.heard().await;
        is_told(&heard.data[&1]);
        assert_eq!(heard.finished, [5, 7, 1]);
        assert_eq!(heard.goodbye, Some(0));
    }
    fixture.backend.lives(0).await;
    fixture.ended().await;
}

#[tokio::test]
async fn sessions_end_with_the_reason_by_websocket() {
    let mut fixture = Fixture::new().await;
    let attach = AttachRequest {
        container: "silent".into(),
        streams: super::ALL,
    };
    let attach = fixture.urls.attach(attach).unwrap();
    let urls = [fixture.exec("sleep"), fixture.exec("yes"), attach];
    let mut clients = Vec::new();
    for url in urls {
        clients.push(WebSocketClient::connect(&url, V5).await);
    }
    fixture.backend.lives(3).await;
    fixture.end();
    for mut client in clients {
        let (heard, code) = client.heard().await;
        is_told(&heard[&3]);
        assert_eq!(code, 1000);
    }
    fixture.backend.lives(0).await;
    fixture.ended().await;
}

#[tokio::test]
async fn forwarded_connections_end_with_the_reason_by_spdy() {
    let mut fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), FORWARD).await;
    let mut errors = Vec::new();
    for request in ["1", "2"] {
        let headers = [("port", "7"), ("requestid", request)];
        for kind in ["error", "data"] {
            let headers = [&[("streamtype", kind)][..], &headers].concat();
            let (stream, taken) = client.open(&headers).await;
            assert!(taken);
            if kind == "error" {
                errors.push(stream);
            }
        }
    }
    // One whose other half has not come.
    let half = [("streamtype", "error"), ("port", "7"), ("requestid", "3")];
    errors.push(client.open(&half).await.0);
    fixture.backend.lives(2).await;
    fixture.end();
    let heard = client.heard().await;
    for error in errors {
        let told = heard.text(error);
        assert!(told.contains(REASON), "{told:?}");
    }
    assert_eq!(heard.goodbye, Some(0));
    fixture.backend.lives(0).await;
    drop(client);
    fixture.ended().await;
}

#[tokio::test]
async fn forwarded_connections_end_with_the_reason_by_websocket() {
    let mut fixture = Fixture::new().await;
    let mut client = WebSocketClient::connect(&fixture.forward(&[7]), V4).await;
    fixture.backend.lives(1).await;
    fixture.end();
    let (heard, code) = client.heard().await;
    // The port's number comes first.
    let told = String::from_utf8(heard[&1][2..].to_vec()).unwrap();
    assert!(told.contains(REASON), "{told:?}");
    assert_eq!(code, 1000);
    fixture.ended().await;
}

#[tokio::test]
async fn nobody_new_is_served_and_who_has_not_asked_is_cut_off() {
    let mut fixture = Fixture::new().await;
    let url = fixture.exec("sleep");
    let (address, _) = super::spdy_client::host_and_path(&url);
    let mut silent = TcpStream::connect(address).await.unwrap();
    // Accepted before the server is told to end.
    drop(SpdyClient::connect(&url, V4).await);
    fixture.end();
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
    fixture.ended().await;
    assert!(TcpStream::connect(address).await.is_err());
}
