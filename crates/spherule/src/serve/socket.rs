//! The services' unix socket: only root and the daemon's own user reach it.

use anyhow::Context;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::UnixListener;

/// Binds the socket in the run directory. One that a killed daemon left is
/// replaced: the state's lock already says that no other daemon lives.
pub(crate) fn listen(run: &Path) -> anyhow::Result<UnixListener> {
    let path = run.join(pod_api::SOCKET);
    // Bound under another name first: the socket appears with its rights set.
    let new = run.join(format!("{}.new", pod_api::SOCKET));
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new)
        .with_context(|| format!("cannot bind the socket {}", new.display()))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, &path)
        .with_context(|| format!("cannot put the socket at {}", path.display()))?;
    Ok(listener)
}
