//! Clients that go away, in every phase: nothing of theirs lives on.

use super::spdy_client::{SpdyClient, ask, upgrade};
use super::websocket_client::WebSocketClient;
use super::{Fixture, pattern, soon};
use crate::limits::Limits;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const V4: &str = "v4.channel.k8s.io";
const TYPES: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

#[tokio::test]
async fn after_the_upgrade_and_between_streams() {
    let fixture = Fixture::new().await;
    drop(ask(&fixture.exec("sleep"), &upgrade(V4)).await);
    for count in 1..TYPES.len() {
        let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
        client.open_types(&TYPES[..count]).await;
    }
    // Within a frame.
    let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
    client.raw(&[&[0x80, 3, 0, 1, 0, 0]]).await;
    drop(client);
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn while_the_command_runs() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
    client.open_types(&TYPES).await;
    fixture.backend.lives(1).await;
    drop(client);
    fixture.backend.lives(0).await;
    let client = WebSocketClient::connect(&fixture.exec("sleep"), V4).await;
    fixture.backend.lives(1).await;
    drop(client);
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn with_a_goodbye() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
    client.open_types(&TYPES).await;
    fixture.backend.lives(1).await;
    client.control(7, 0, &[0; 8]).await;
    fixture.backend.lives(0).await;
}

/// Takes all that has come: who leaves something unread ends with a reset, and not
/// with an end that has to wait.
fn read_all(socket: &TcpStream) {
    let mut bytes = [0; 4096];
    while socket.try_read(&mut bytes).is_ok_and(|read| read > 0) {}
}

#[tokio::test]
async fn behind_input_that_the_command_does_not_read() {
    let limits = Limits {
        nudge: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
    client.open_types(&TYPES).await;
    fixture.backend.lives(1).await;
    let flood = pattern(20 << 20);
    // The server stops reading before the end of it.
    let write = client.data(3, false, &flood);
    let stalled = tokio::time::timeout(Duration::from_millis(500), write).await;
    assert!(stalled.is_err());
    read_all(&client.socket);
    drop(client);
    fixture.backend.lives(0).await;

    let mut client = WebSocketClient::connect(&fixture.exec("sleep"), V4).await;
    fixture.backend.lives(1).await;
    let flood = async {
        for piece in flood.chunks(100_000) {
            client.say(0, piece).await;
        }
    };
    let stalled = tokio::time::timeout(Duration::from_millis(500), flood).await;
    assert!(stalled.is_err());
    read_all(client.socket.get_ref());
    drop(client);
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn once_it_has_said_all_that_the_command_does_not_read() {
    let limits = Limits {
        unread: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
    client.open_types(&TYPES).await;
    fixture.backend.lives(1).await;
    // More than two kernels keep between them.
    for _ in 0..3 {
        soon(client.data(3, false, &[0; 15 << 20])).await;
    }
    read_all(&client.socket);
    drop(client);
    soon(fixture.backend.lives(0)).await;

    let mut client = WebSocketClient::connect(&fixture.exec("sleep"), V4).await;
    fixture.backend.lives(1).await;
    for _ in 0..450 {
        soon(client.say(0, &[0; 100_000])).await;
    }
    drop(client);
    soon(fixture.backend.lives(0)).await;
}

#[tokio::test]
async fn without_reading_what_the_command_says() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec("flood 50000000"), V4).await;
    client.open_types(&TYPES).await;
    fixture.backend.lives(1).await;
    drop(client);
    fixture.backend.lives(0).await;
    let client = WebSocketClient::connect(&fixture.exec("flood 50000000"), V4).await;
    fixture.backend.lives(1).await;
    drop(client);
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn at_the_end_it_may_be_slow_but_not_for_ever() {
    let limits = Limits {
        linger: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.exec("exit 0"), V4).await;
    client.open_types(&TYPES).await;
    fixture.backend.lives(0).await;
    // It neither reads nor closes; the server closes.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut socket = client.second_writer();
    while socket.write_all(&[0; 1000]).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn slow_reader_gets_all_of_it() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec("flood 3000000"), V4).await;
    client.open_types(&TYPES).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let heard = client.heard().await;
    assert!(heard.data[&5] == pattern(3_000_000));
    assert!(heard.text(1).contains("Success"));
}
