//! Port-forward by both transports and by SPDY within WebSocket.

use super::spdy_client::{Frame, SpdyClient};
use super::websocket_client::WebSocketClient;
use super::{Fixture, pattern, soon};
use crate::limits::Limits;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

const PROTOCOL: &str = "portforward.k8s.io";

/// Opens the two streams of a connection: error, data.
async fn pair(client: &mut SpdyClient, port: &str, request: &str) -> (u32, u32) {
    let mut headers = vec![("streamtype", "error"), ("port", port)];
    if !request.is_empty() {
        headers.push(("requestid", request));
    }
    let (error, taken) = client.open(&headers).await;
    assert!(taken);
    headers[0].1 = "data";
    let (data, taken) = client.open(&headers).await;
    assert!(taken);
    (error, data)
}

/// Reads until both streams are finished.
async fn both(client: &mut SpdyClient, error: u32, data: u32) -> (Vec<u8>, Vec<u8>) {
    let mut heard: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut open = vec![error, data];
    while !open.is_empty() {
        match client.frame().await.unwrap() {
            Frame::Data(stream, fin, bytes) => {
                heard.entry(stream).or_default().extend(bytes);
                open.retain(|&number| number != stream || !fin);
            }
            Frame::Window(..) | Frame::Reset(..) => {}
            other => panic!("{other:?}"),
        }
    }
    let mut take = |stream| heard.remove(&stream).unwrap_or_default();
    (take(error), take(data))
}

#[tokio::test]
async fn connections_are_half_closed_and_many_go_by_one_session() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    for n in 0..50 {
        // Old clients name no request.
        let request = if n % 2 == 0 {
            String::new()
        } else {
            n.to_string()
        };
        let (error, data) = pair(&mut client, "80", &request).await;
        client.data(data, false, b"some ").await;
        client.data(data, true, b"bytes").await;
        let (told, answer) = both(&mut client, error, data).await;
        assert_eq!((&told[..], &answer[..]), (&b""[..], &b"10 bytes"[..]));
    }
    drop(client);
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn much_goes_through_a_connection_unchanged() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let (error, data) = pair(&mut client, "7", "0").await;
    let sent = pattern(8 << 20);
    let mut frames = Vec::new();
    for piece in sent.chunks(32 << 10) {
        let [.., x, y, z] = piece.len().to_be_bytes();
        frames.extend(data.to_be_bytes());
        frames.extend([0, x, y, z]);
        frames.extend(piece);
    }
    frames.extend(data.to_be_bytes());
    frames.extend([1, 0, 0, 0]);
    let mut writer = client.second_writer();
    let ((_, got), ()) = tokio::join!(both(&mut client, error, data), async {
        writer.write_all(&frames).await.unwrap();
    });
    assert_eq!(Sha256::digest(&got), Sha256::digest(&sent));
}

#[tokio::test]
async fn refused_port_is_told_and_the_session_goes_on() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let (error, data) = pair(&mut client, "1", "0").await;
    let (told, _) = both(&mut client, error, data).await;
    let told = String::from_utf8(told).unwrap();
    assert!(
        told.contains("port 1 ") && told.contains("nothing listens"),
        "{told}"
    );
    let (error, data) = pair(&mut client, "80", "1").await;
    client.data(data, true, b"").await;
    assert_eq!(both(&mut client, error, data).await.1, b"0 bytes");
}

#[tokio::test]
async fn stalled_connection_stalls_no_other() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let (_, stalled) = pair(&mut client, "9", "stalled").await;
    // As much as a client sends that keeps to its window.
    client.data(stalled, false, &[0; 64 << 10]).await;
    ping(&mut client, "moving").await;
}

/// A connection that is served.
async fn ping(client: &mut SpdyClient, request: &str) {
    let (error, data) = pair(client, "7", request).await;
    client.data(data, true, b"ping").await;
    assert_eq!(soon(both(client, error, data)).await.1, b"ping");
}

#[tokio::test]
async fn connection_stalled_by_a_client_without_windows_stalls_no_other_and_loses_nothing() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let (error, stalled) = pair(&mut client, "10", "stalled").await;
    let sent = pattern(12 << 20);
    soon(client.data(stalled, false, &sent)).await;
    ping(&mut client, "behind it").await;
    soon(client.data(stalled, true, &sent)).await;
    ping(&mut client, "and behind its end").await;
    fixture.backend.read.notify_one();
    let (_, answer) = soon(both(&mut client, error, stalled)).await;
    let sent = [&sent[..], &sent].concat();
    let right = [&b"25165824 bytes"[..], &Sha256::digest(&sent)].concat();
    assert_eq!(answer, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_connections_lose_nothing_side_by_side() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let sent = pattern(3 << 20);
    let mut streams = Vec::new();
    for n in 0..10 {
        streams.push(pair(&mut client, "11", &n.to_string()).await);
    }
    for piece in sent.chunks(32 << 10) {
        for &(_, data) in &streams {
            soon(client.data(data, false, piece)).await;
        }
    }
    for &(_, data) in &streams {
        client.data(data, true, b"").await;
    }
    let mut answers: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut ended = 0;
    while ended < streams.len() {
        if let Frame::Data(stream, fin, bytes) = soon(client.frame()).await.unwrap() {
            ended += usize::from(fin && streams.iter().any(|pair| pair.1 == stream));
            answers.entry(stream).or_default().extend(bytes);
        }
    }
    for (_, data) in streams {
        assert_eq!(answers[&data], Sha256::digest(&sent).as_slice(), "{data}");
    }
}

#[tokio::test]
async fn connection_that_takes_all_the_room_there_is_ends_so_that_others_live() {
    let limits = Limits {
        spilled_by_forward: 1 << 20,
        stalled: Duration::from_millis(200),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let (_, stalled) = pair(&mut client, "9", "stalled").await;
    fixture.backend.lives(1).await;
    let mut writer = client.second_writer();
    let flood = async {
        let [a, b, c, d] = stalled.to_be_bytes();
        let frame = [&[a, b, c, d, 0, 0x10, 0, 0][..], &[0; 1 << 20]].concat();
        for _ in 0..16 {
            writer.write_all(&frame).await.unwrap();
        }
    };
    let ended = async {
        let mut finished = false;
        loop {
            match client.frame().await.unwrap() {
                Frame::Data(stream, true, bytes) if stream == stalled => {
                    assert!(bytes.is_empty());
                    finished = true;
                }
                Frame::Reset(stream, _) if stream == stalled => break assert!(finished),
                // The other stream of the pair says nothing: clients would take that
                // for the end of all connections.
                Frame::Data(_, true, bytes) => assert!(bytes.is_empty()),
                Frame::Window(..) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    soon(async { tokio::join!(flood, ended) }).await;
    soon(fixture.backend.lives(0)).await;
    ping(&mut client, "another").await;
}

#[tokio::test]
async fn broken_connection_ends_though_its_pod_does_not_read() {
    let limits = Limits {
        linger: Duration::from_millis(100),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    for fin in [false, true] {
        let (_, data) = pair(&mut client, "9", &fin.to_string()).await;
        client.data(data, fin, &[0; 1 << 20]).await;
        fixture.backend.lives(1).await;
        client.reset(data).await;
        soon(fixture.backend.lives(0)).await;
    }
}

#[tokio::test]
async fn reset_stream_ends_its_connection_only() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let (_, first) = pair(&mut client, "7", "1").await;
    pair(&mut client, "7", "2").await;
    fixture.backend.lives(2).await;
    client.reset(first).await;
    fixture.backend.lives(1).await;
}

#[tokio::test]
async fn streams_without_sense_are_refused() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    for headers in [
        &[("streamtype", "data")][..],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "70000")],
        &[("streamtype", "stdin"), ("port", "80")],
        &[("port", "80")],
    ] {
        assert!(!client.open(headers).await.1, "{headers:?}");
    }
    let data = [("streamtype", "data"), ("port", "80"), ("requestid", "1")];
    assert!(client.open(&data).await.1);
    // A second one of its kind, and its other half for another port.
    assert!(!client.open(&data).await.1);
    let error = [("streamtype", "error"), ("port", "81"), ("requestid", "1")];
    assert!(!client.open(&error).await.1);
}

#[tokio::test]
async fn half_of_a_pair_does_not_wait_for_ever() {
    let limits = Limits {
        stream_creation: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let headers = [("streamtype", "error"), ("port", "80"), ("requestid", "1")];
    let (error, _) = client.open(&headers).await;
    let mut told = Vec::new();
    while let Some(frame) = client.frame().await {
        match frame {
            Frame::Data(_, _, bytes) => told.extend(bytes),
            Frame::Reset(stream, _) => {
                assert_eq!(stream, error);
                break;
            }
            _ => {}
        }
    }
    assert!(String::from_utf8(told).unwrap().contains("timed out"));
}

#[tokio::test]
async fn number_of_streams_is_bounded() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.forward(&[]), PROTOCOL).await;
    let mut taken = 0;
    for n in 0..1100 {
        let n = n.to_string();
        let headers = [("streamtype", "data"), ("port", "80"), ("requestid", &n)];
        taken += usize::from(client.open(&headers).await.1);
    }
    assert_eq!(taken, 1024);
}

#[tokio::test]
async fn ports_go_by_websocket_channels() {
    let fixture = Fixture::new().await;
    let url = fixture.forward(&[7, 1]);
    let mut client = WebSocketClient::connect(&url, "v4.channel.k8s.io").await;
    client.say(0, b"ping").await;
    let mut heard: HashMap<u8, Vec<u8>> = HashMap::new();
    let whole = |heard: &HashMap<u8, Vec<u8>>, channel, len| {
        heard.get(&channel).is_some_and(|bytes| bytes.len() >= len)
    };
    while !whole(&heard, 0, 6) || !whole(&heard, 3, 3) || !whole(&heard, 1, 2) {
        let (channel, bytes) = client.next().await;
        heard.entry(channel).or_default().extend(bytes);
    }
    assert_eq!(heard[&0], [7, 0, b'p', b'i', b'n', b'g']);
    assert_eq!(heard[&1], [7, 0]);
    assert_eq!(heard[&2], [1, 0]);
    let told = String::from_utf8(heard[&3][2..].to_vec()).unwrap();
    assert!(told.contains("nothing listens"), "{told}");
    drop(client);
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn stalled_port_of_websocket_channels_stalls_no_other() {
    let fixture = Fixture::new().await;
    let url = fixture.forward(&[9, 7]);
    let mut client = WebSocketClient::connect(&url, "v4.channel.k8s.io").await;
    for _ in 0..40 {
        soon(client.say(0, &[0; 500_000])).await;
    }
    client.say(2, b"ping").await;
    let mut heard = Vec::new();
    while !heard.ends_with(b"ping") {
        let (channel, bytes) = soon(client.next()).await;
        if channel == 2 {
            heard.extend(bytes);
        }
    }
}

#[tokio::test]
async fn spdy_goes_through_a_websocket_tunnel() {
    let fixture = Fixture::new().await;
    let url = fixture.forward(&[]);
    let mut outer = WebSocketClient::connect(&url, "SPDY/3.1+portforward.k8s.io").await;
    let mut headers = crate::spdy::HeaderWriter::new();
    let mut sent = Vec::new();
    for (stream, kind) in [(1, "error"), (3, "data")] {
        let block = headers.pairs(&[("streamtype", kind), ("port", "80")]);
        let [.., x, y, z] = (10 + block.len()).to_be_bytes();
        sent.extend([0x80, 3, 0, 1, 0, x, y, z, 0, 0, 0, stream, 0, 0, 0, 0, 0, 0]);
        sent.extend(block);
    }
    sent.extend([0, 0, 0, 3, 1, 0, 0, 4]);
    sent.extend(b"four");
    // Messages need not be frames.
    for piece in sent.chunks(7) {
        let message = Message::Binary(Bytes::copy_from_slice(piece));
        outer.socket.send(message).await.unwrap();
    }
    let mut got = Vec::new();
    while !got.windows(7).any(|bytes| bytes == b"4 bytes") {
        let message = outer.socket.next().await.unwrap().unwrap();
        got.extend(message.into_data());
    }
    drop(outer);
    fixture.backend.lives(0).await;
}
