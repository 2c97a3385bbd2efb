//! The wire of a container's stdin: raw bytes once it is open.

use super::client::{GuestError, greet, read_message};
use super::vsock::connect_patiently;
use guest_api::proto::open_stream::Stream;
use guest_api::proto::{OpenStream, StreamOpened};
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use wire::WireError;

/// Opens the stdin of a container. With `keep_open` it stays open when the
/// connection ends; otherwise it ends with it.
pub(crate) async fn open(
    socket: &Path,
    container: &str,
    keep_open: bool,
) -> Result<UnixStream, GuestError> {
    let stream = connect_patiently(socket, guest_api::STREAM_PORT).await;
    let mut stream = stream.map_err(GuestError::Connect)?;
    greet(&mut stream).await?;
    let frame = wire::encode(&OpenStream {
        container_id: container.to_owned(),
        stream: Stream::Stdin.into(),
        keep_open,
    })?;
    let sent = stream.write_all(&frame).await;
    sent.map_err(WireError::from)?;
    match read_message::<StreamOpened>(&mut stream).await?.error {
        None => Ok(stream),
        Some(error) => Err(GuestError::refused(&error)),
    }
}
