//! Opens a container's output stream: to the guest agent's stream port, over the
//! vsock socket in this VM's directory.

use guest_api::STREAM_PORT;
use guest_api::proto::{OpenStream, StreamOpened, open_stream::Stream};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use wire::WireError;

/// How long the agent may take for each answer. A guest on an emulating KVM
/// with a busy host needs seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer to CONNECT: "OK " and a number.
const MAX_CONNECT_ANSWER: usize = 32;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The vsock could not be reached.
    #[error("the guest's vsock cannot be reached")]
    Vsock(#[source] io::Error),
    /// Nobody listens in the guest.
    #[error("the guest agent does not listen on port {STREAM_PORT}")]
    Refused,
    /// The agent broke the protocol, or did not answer in time.
    #[error("the guest agent did not open the stream")]
    Wire(#[from] WireError),
    /// The agent said no.
    #[error("the guest agent refused the stream: {0}")]
    Agent(String),
}

/// Opens one output stream of a container.
pub(crate) fn open(
    vsock: &Path,
    container_id: &str,
    which: Stream,
) -> Result<UnixStream, StreamError> {
    let mut stream = UnixStream::connect(vsock).map_err(StreamError::Vsock)?;
    let limit = |timeout| {
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)
    };
    limit(Some(ANSWER_TIMEOUT)).map_err(StreamError::Vsock)?;
    connect_port(&mut stream)?;
    wire::handshake(&mut stream, "spherule-vmm")?;
    let open = OpenStream {
        container_id: container_id.to_owned(),
        stream: which.into(),
        keep_open: false,
    };
    wire::write_frame(&mut stream, &open)?;
    let opened: StreamOpened = wire::read_frame(&mut stream)?.ok_or(WireError::Truncated)?;
    if let Some(error) = opened.error {
        // The guest's own text: kept short.
        return Err(StreamError::Agent(
            error.message.chars().take(500).collect(),
        ));
    }
    let unlimited = stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_nonblocking(true));
    unlimited.map_err(StreamError::Vsock)?;
    Ok(stream)
}

/// `CONNECT <port>\n`, answered by `OK <number>\n` or the end of the connection.
fn connect_port(stream: &mut UnixStream) -> Result<(), StreamError> {
    stream
        .write_all(format!("CONNECT {STREAM_PORT}\n").as_bytes())
        .map_err(StreamError::Vsock)?;
    let mut answer = Vec::new();
    let mut byte = [0];
    // Byte by byte: what follows the line feed is the agent's.
    while answer.len() < MAX_CONNECT_ANSWER {
        match stream.read(&mut byte) {
            Ok(0) => return Err(StreamError::Refused),
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => answer.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err(StreamError::Refused);
            }
            Err(e) => return Err(StreamError::Vsock(e)),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(())
    } else {
        Err(StreamError::Refused)
    }
}
