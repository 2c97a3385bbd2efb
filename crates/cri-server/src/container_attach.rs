//! Attach: the URL where a container's streams are served.

use crate::error::CriError;
use crate::service::RuntimeServer;
use crate::streaming::{require_running, wanted};
use cri_api::v1::{AttachRequest, AttachResponse};

/// Attach: checks the request; whoever comes with the URL is attached.
pub(crate) async fn attach(
    server: &RuntimeServer,
    request: AttachRequest,
) -> Result<AttachResponse, CriError> {
    let found = server.find_container(&request.container_id)?;
    let streams = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    if request.stdin && !found.config.stdin {
        return Err(CriError::invalid("stdin", "the container was made without"));
    }
    if request.tty && !found.config.tty {
        return Err(CriError::invalid("tty", "the container was made without"));
    }
    require_running(&found)?;
    let url = server.streams.attach(streaming_server::AttachRequest {
        container: found.id().to_owned(),
        streams,
    })?;
    Ok(AttachResponse { url })
}
