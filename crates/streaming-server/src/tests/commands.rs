//! Exec and attach by both transports.

use super::spdy_client::{Frame, SpdyClient};
use super::websocket_client::WebSocketClient;
use super::{ALL, Fixture, pattern};
use crate::backend::{AttachRequest, Streams};
use crate::limits::Limits;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";
const OUTPUTS: Streams = Streams {
    stdin: false,
    ..ALL
};
const TERMINAL: Streams = Streams {
    terminal: true,
    stderr: false,
    ..ALL
};
const MUCH: usize = 8 << 20;

#[tokio::test]
async fn outputs_and_exit_code_come_by_spdy() {
    let fixture = Fixture::new().await;
    for (protocol, code) in [(V5, true), (V4, true), ("v3.channel.k8s.io", false)] {
        let url = fixture.exec_with("both", OUTPUTS);
        let mut client = SpdyClient::connect(&url, protocol).await;
        client.open_types(&["error", "stdout", "stderr"]).await;
        let heard = client.heard().await;
        assert_eq!((heard.text(3), heard.text(5)), ("out".into(), "err".into()));
        assert_eq!(heard.finished, [3, 5, 1]);
        assert_eq!(heard.goodbye, Some(0));
        let told = heard.text(1);
        if code {
            let status: Value = serde_json::from_str(&told).unwrap();
            assert_eq!(status["details"]["causes"][0]["message"], "3");
        } else {
            assert_eq!(told, "command terminated with non-zero exit code: 3");
        }
    }
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn outputs_and_exit_code_come_by_websocket() {
    let fixture = Fixture::new().await;
    let url = fixture.exec_with("both", OUTPUTS);
    let mut client = WebSocketClient::connect(&url, V5).await;
    // The empty message says that the channels are there.
    assert_eq!(client.next().await, (1, Vec::new()));
    let (heard, code) = client.heard().await;
    assert_eq!((&heard[&1][..], &heard[&2][..]), (&b"out"[..], &b"err"[..]));
    let status: Value = serde_json::from_slice(&heard[&3]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(code, 1000);
}

#[tokio::test]
async fn base64_channels_are_text() {
    let fixture = Fixture::new().await;
    let url = fixture.exec_with("both", OUTPUTS);
    let mut client = WebSocketClient::connect(&url, "v4.base64.channel.k8s.io").await;
    let (heard, code) = client.heard().await;
    assert_eq!(
        (&heard[&b'1'][..], &heard[&b'2'][..]),
        (&b"b3V0"[..], &b"ZXJy"[..])
    );
    assert_eq!(code, 1000);
}

#[tokio::test]
async fn failures_are_told_on_the_error_stream() {
    let fixture = Fixture::new().await;
    for (command, cause) in [("missing", "no such program"), ("die", "the VM died")] {
        let mut client = SpdyClient::connect(&fixture.exec_with(command, OUTPUTS), V4).await;
        client.open_types(&["error", "stdout", "stderr"]).await;
        let status: Value = serde_json::from_str(&client.heard().await.text(1)).unwrap();
        assert_eq!(status["reason"], "InternalError");
        assert_eq!(status["details"]["causes"][0]["message"], cause);
        let mut client = WebSocketClient::connect(&fixture.exec(command), V4).await;
        let (heard, _) = client.heard().await;
        assert_eq!(serde_json::from_slice::<Value>(&heard[&3]).unwrap(), status);
    }
}

/// What a client that attaches to the container hears: output and status.
async fn attached(container: &str) -> (String, Value) {
    let fixture = Fixture::new().await;
    let request = AttachRequest {
        container: container.into(),
        streams: OUTPUTS,
    };
    let url = fixture.urls.attach(request).unwrap();
    let mut client = SpdyClient::connect(&url, V4).await;
    client.open_types(&["error", "stdout", "stderr"]).await;
    let heard = client.heard().await;
    (heard.text(3), serde_json::from_str(&heard.text(1)).unwrap())
}

#[tokio::test]
async fn end_of_what_was_attached_to_is_success() {
    let (_, status) = attached("c").await;
    assert_eq!(status, json!({"metadata": {}, "status": "Success"}));
}

#[tokio::test]
async fn lost_output_is_told_at_the_end() {
    let (output, status) = attached("fast").await;
    assert_eq!(output, "moremore");
    assert_eq!(status["status"], "Failure");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("10 bytes of output were lost"),
        "{message}"
    );
}

#[tokio::test]
async fn much_goes_both_ways_unchanged_by_spdy() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec("cat"), V4).await;
    client
        .open_types(&["error", "stdin", "stdout", "stderr"])
        .await;
    let sent = pattern(MUCH);
    let mut frames = Vec::new();
    for piece in sent.chunks(100_000) {
        let [.., x, y, z] = piece.len().to_be_bytes();
        frames.extend([0, 0, 0, 3, 0, x, y, z]);
        frames.extend(piece);
    }
    // The end of stdin.
    frames.extend([0, 0, 0, 3, 1, 0, 0, 0]);
    let mut writer = client.second_writer();
    let (heard, ()) = tokio::join!(client.heard(), async {
        writer.write_all(&frames).await.unwrap();
    });
    assert_eq!(Sha256::digest(&heard.data[&5]), Sha256::digest(&sent));
    assert!(heard.text(1).contains("Success"));
}

#[tokio::test]
async fn much_goes_both_ways_unchanged_by_websocket() {
    let fixture = Fixture::new().await;
    let client = WebSocketClient::connect(&fixture.exec("cat"), V5).await;
    let (mut writer, mut reader) = client.split();
    let sent = pattern(MUCH);
    let (heard, ()) = tokio::join!(reader.heard(), async {
        for piece in sent.chunks(100_000) {
            writer.say(0, piece).await;
        }
        // The end of stdin.
        writer.say(255, &[0]).await;
    });
    let (heard, code) = heard;
    assert_eq!(Sha256::digest(&heard[&1]), Sha256::digest(&sent));
    assert_eq!(code, 1000);
}

#[tokio::test]
async fn terminal_has_the_size_of_its_clients_from_the_start() {
    let fixture = Fixture::new().await;
    let size = br#"{"Width":132,"Height":50}"#;
    let wider = br#"{"Width":133,"Height":50}"#;
    let url = fixture.exec_with("size", TERMINAL);
    let mut client = SpdyClient::connect(&url, V4).await;
    client
        .open_types(&["error", "stdin", "stdout", "resize"])
        .await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.data(7, false, size).await;
    client.data(7, false, wider).await;
    assert_eq!(client.heard().await.text(5), "132x50, 133x50");

    let url = fixture.exec_with("size", TERMINAL);
    let mut client = WebSocketClient::connect(&url, V4).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.say(4, size).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.say(4, wider).await;
    assert_eq!(client.heard().await.0[&1], b"132x50, 133x50");
}

#[tokio::test]
async fn command_that_takes_no_input_any_more_is_heard_to_its_end() {
    let fixture = Fixture::new().await;
    let mut client = WebSocketClient::connect(&fixture.exec("deaf"), V4).await;
    client.say(0, b"taken").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.say(0, b"not taken").await;
    let (heard, _) = client.heard().await;
    assert_eq!(heard[&1], b"still here");
}

#[tokio::test]
async fn terminal_of_a_client_that_tells_no_size_starts_without_one() {
    let limits = Limits {
        terminal_size: Duration::from_millis(50),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let url = fixture.exec_with("size", TERMINAL);
    let mut client = WebSocketClient::connect(&url, V4).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.say(4, br#"{"Width":132,"Height":50}"#).await;
    assert_eq!(client.heard().await.0[&1], b"unknown, 132x50");
}

#[tokio::test]
async fn streams_that_the_request_does_not_want_are_refused() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec_with("both", OUTPUTS), V4).await;
    for kind in ["stdin", "resize", "data", ""] {
        let (_, taken) = client.open(&[("streamtype", kind)]).await;
        assert!(!taken, "{kind}");
    }
    client.open_types(&["error", "stdout"]).await;
    let (_, taken) = client.open(&[("streamtype", "stdout")]).await;
    assert!(!taken);
    let (_, taken) = client.open(&[]).await;
    assert!(!taken);
    client.open_types(&["stderr"]).await;
    assert!(client.heard().await.text(9).contains("NonZeroExitCode"));
}

#[tokio::test]
async fn client_that_does_not_open_its_streams_is_cut_off() {
    let limits = Limits {
        stream_creation: Duration::from_millis(100),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.exec("cat"), V4).await;
    client.open_types(&["error", "stdout"]).await;
    assert_eq!(client.heard().await.goodbye, Some(0));
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn idle_session_is_ended() {
    let limits = Limits {
        idle: Duration::from_millis(200),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits).await;
    let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
    client
        .open_types(&["error", "stdin", "stdout", "stderr"])
        .await;
    client.heard().await;
    let mut client = WebSocketClient::connect(&fixture.exec("sleep"), V4).await;
    assert_eq!(client.heard().await.1, 1001);
    fixture.backend.lives(0).await;
}

#[tokio::test]
async fn windows_of_a_client_that_keeps_them_are_kept() {
    let fixture = Fixture::new().await;
    let url = fixture.exec_with("flood 300000", OUTPUTS);
    let mut client = SpdyClient::connect(&url, V4).await;
    // SETTINGS: streams begin with a window of 1000 bytes.
    client
        .control(4, 0, &[0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 3, 0xe8])
        .await;
    client.open_types(&["error", "stdout", "stderr"]).await;
    let mut got = 0;
    let mut window = 1000;
    let mut connection = 64 << 10;
    loop {
        match client.frame().await.unwrap() {
            Frame::Data(3, true, _) => break,
            Frame::Data(3, false, bytes) => {
                got += bytes.len();
                window -= i64::try_from(bytes.len()).unwrap();
                connection -= i64::try_from(bytes.len()).unwrap();
                assert!(window >= 0 && connection >= 0);
                if window == 0 {
                    client.window(3, 70_000).await;
                    client.window(0, 70_000).await;
                    window += 70_000;
                    connection += 70_000;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, 300_000);
}

#[tokio::test]
async fn what_is_taken_of_stdin_is_credited() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec("cat"), V4).await;
    client
        .open_types(&["error", "stdin", "stdout", "stderr"])
        .await;
    client.data(3, false, &[0; 60_000]).await;
    let mut credits = Vec::new();
    while credits.len() < 2 {
        if let Frame::Window(stream, delta) = client.frame().await.unwrap() {
            assert!(delta >= 32 << 10, "{delta}");
            credits.push(stream);
        }
    }
    credits.sort_unstable();
    assert_eq!(credits, [0, 3]);
}

#[tokio::test]
async fn stream_that_the_client_resets_stops_no_other() {
    let fixture = Fixture::new().await;
    let url = fixture.exec_with("flood 5000000", OUTPUTS);
    let mut client = SpdyClient::connect(&url, V4).await;
    client.open_types(&["error", "stdout", "stderr"]).await;
    client.reset(3).await;
    assert!(client.heard().await.text(1).contains("Success"));
}

#[tokio::test]
async fn pings_are_answered() {
    let fixture = Fixture::new().await;
    let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
    client.control(6, 0, &[0, 0, 0, 9]).await;
    assert_eq!(client.frame().await, Some(Frame::Ping(9)));
}

#[tokio::test]
async fn nonsense_ends_the_connection_with_an_error() {
    let fixture = Fixture::new().await;
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        // A control frame of version 2, one of 16 MiB, one without its stream.
        &[0x80, 2, 0, 1, 0, 0, 0, 0],
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0x80, 3, 0, 3, 0, 0, 0, 1, 0],
        // Headers that are not compressed.
        &[
            0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4,
        ],
        // Data for stream 0.
        &[0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut client = SpdyClient::connect(&fixture.exec("sleep"), V4).await;
        client
            .open_types(&["error", "stdin", "stdout", "stderr"])
            .await;
        client.raw(&[nonsense]).await;
        // The first reads as data of a stream that never was, and waits for more.
        client.socket.shutdown().await.unwrap();
        let goodbye = client.heard().await.goodbye;
        if nonsense[0] != b'G' {
            assert_eq!(goodbye, Some(1), "{nonsense:?}");
        }
    }
    for nonsense in [&b"\x09xyz"[..], b"\xff\x09", b"\xff"] {
        let mut client = WebSocketClient::connect(&fixture.exec("sleep"), V5).await;
        client.send(nonsense).await;
        assert_eq!(client.heard().await.1, 1002, "{nonsense:?}");
    }
    fixture.backend.lives(0).await;
}
