//! Logs from a guest agent that the test plays.

use super::*;
use guest_api::proto::{OpenStream, StreamOpened};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Answers `count` connections as the vsock device and the agent do; hands over
/// the opened streams.
fn agent(
    path: &Path,
    count: usize,
    refusal: Option<&'static str>,
) -> Receiver<(Stream, UnixStream)> {
    let listener = UnixListener::bind(path).unwrap();
    let (to, from) = channel();
    std::thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 13];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"CONNECT 1025\n");
            stream.write_all(b"OK 1073741824\n").unwrap();
            wire::handshake(&mut stream, "agent").unwrap();
            let open: OpenStream = wire::read_frame(&mut stream).unwrap().unwrap();
            let error = refusal.map(|message| wire::proto::Error {
                message: message.into(),
                ..wire::proto::Error::default()
            });
            wire::write_frame(&mut stream, &StreamOpened { error }).unwrap();
            let _ = to.send((open.stream(), stream));
        }
    });
    from
}

fn append(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

#[test]
fn both_streams_are_opened_copied_and_drained() {
    let dir = tempfile::tempdir().unwrap();
    let (vsock, file) = (dir.path().join("vsock"), dir.path().join("log"));
    let streams = agent(&vsock, 2, None);
    let logs = Logs::new(vsock);
    logs.attach("c", false, append(&file)).unwrap();
    let (first, mut out) = streams.recv().unwrap();
    let (second, mut err) = streams.recv().unwrap();
    assert_eq!((first, second), (Stream::Stdout, Stream::Stderr));
    out.write_all(b"hello\n").unwrap();
    err.write_all(b"oh\n").unwrap();
    let status = logs.drain("c", Instant::now()).unwrap();
    assert!(!status.drained);
    // A rotation goes on in the new file, without new streams.
    let rotated = dir.path().join("log.1");
    while logs.statuses()[0].bytes < 9 {
        std::thread::yield_now();
    }
    logs.attach("c", false, append(&rotated)).unwrap();
    out.write_all(b"again\n").unwrap();
    drop((out, err));
    let far = Instant::now() + Duration::from_secs(60);
    let status = logs.drain("c", far).unwrap();
    assert!(status.drained);
    assert_eq!(status.bytes, 15);
    let old = std::fs::read_to_string(file).unwrap();
    assert!(old.contains(" stdout F hello\n") && old.contains(" stderr F oh\n"));
    assert!(
        std::fs::read_to_string(rotated)
            .unwrap()
            .ends_with(" stdout F again\n")
    );
    logs.detach("c").unwrap();
    assert!(matches!(logs.detach("c"), Err(LogError::NotAttached(_))));
}

#[test]
fn terminal_has_one_stream() {
    let dir = tempfile::tempdir().unwrap();
    let vsock = dir.path().join("vsock");
    let streams = agent(&vsock, 1, None);
    let logs = Logs::new(vsock);
    logs.attach("c", true, append(&dir.path().join("log")))
        .unwrap();
    drop(streams.recv().unwrap());
    logs.drain_all(Instant::now() + Duration::from_secs(60));
    assert!(logs.statuses()[0].drained);
}

#[test]
fn refusal_and_silence_of_the_guest_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let vsock = dir.path().join("vsock");
    let _streams = agent(&vsock, 1, Some("no such container"));
    let logs = Logs::new(vsock);
    let file = dir.path().join("log");
    let Err(LogError::Stream { source, .. }) = logs.attach("c", false, append(&file)) else {
        panic!("attached");
    };
    assert!(source.to_string().contains("no such container"));
    assert!(logs.statuses().is_empty());
    let nobody = Logs::new(dir.path().join("nobody"));
    let got = nobody.attach("c", false, append(&file));
    assert!(matches!(
        got,
        Err(LogError::Stream {
            source: StreamError::Vsock(_),
            ..
        })
    ));
}
