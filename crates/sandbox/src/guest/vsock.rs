//! A connection to a port in the guest, through the VMM's vsock socket.

use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest answer of the VMM to CONNECT, in bytes.
const MAX_ANSWER: usize = 32;
/// Pauses between attempts to connect, each twice the one before: 5 s in all.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(2560);

/// Connects to `port` in the guest. Refused while nobody listens there.
pub(crate) async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    // Byte by byte: what follows the line belongs to the guest's own protocol.
    let mut line = Vec::with_capacity(MAX_ANSWER);
    loop {
        let byte = match stream.read_u8().await {
            Ok(byte) => byte,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(e) => return Err(e),
        };
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() > MAX_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    if line.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

/// [`connect`] where many may come at once: the queue of those who wait to be let in
/// is full for a moment, then it is tried again.
pub(super) async fn connect_patiently(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut pause = FIRST_PAUSE;
    loop {
        match connect(socket, port).await {
            Err(error) if is_full(&error) && pause <= LAST_PAUSE => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            other => return other,
        }
    }
}

/// Refused by the guest, or by the VMM's own socket.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn answer(text: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(text).await.unwrap();
        });
        let result = connect(&path, 1024).await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn bytes_after_the_answer_are_left_in_the_stream() {
        let mut stream = answer(b"OK 1073741824\nrest").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "rest");
    }

    #[tokio::test]
    async fn closed_or_odd_answers_are_refusals() {
        assert!(answer(b"").await.is_err());
        assert!(answer(b"NO\n").await.is_err());
        assert!(answer(&[b'x'; 100]).await.is_err());
    }

    #[tokio::test]
    async fn full_queue_is_waited_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            for attempt in 0..4 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = [0; 13];
                stream.read_exact(&mut line).await.unwrap();
                assert_eq!(&line, b"CONNECT 1026\n");
                // Closed without a word, which is how a refusal looks.
                if attempt == 3 {
                    stream.write_all(b"OK 1\n").await.unwrap();
                }
            }
        });
        connect_patiently(&path, 1026).await.unwrap();
        server.await.unwrap();
    }
}
