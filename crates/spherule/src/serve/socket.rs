//! The services' unix sockets: only root and the daemon's own user reach them.
//! A connection's calls do not hold each other up, however many wait or stall.

use anyhow::{Context, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;
use tonic::transport::Server;

/// Calls at once on one connection: a kubelet has one for all its pods, and calls that
/// wait for a container's end.
const CALLS: u32 = 4096;
/// Most bytes in HTTP/2's windows (RFC 9113, 6.9.1): of a connection, so that only its
/// calls' own bind, and of a call.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
const CALL_WINDOW: u32 = 256 << 10;

/// A gRPC server for one of the sockets.
pub(crate) fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(CALLS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(CALL_WINDOW)
}

/// The path in an address as the kubelet writes it, `unix:///run/x.sock`, or in a
/// plain one.
pub(crate) fn path_of(address: &str) -> anyhow::Result<PathBuf> {
    let path = match address.split_once("://") {
        Some(("unix", path)) => path,
        Some(_) => {
            bail!("--listen {address}: the CRI is served on a unix socket only, unix:///path")
        }
        None => address,
    };
    let path = PathBuf::from(path);
    if !path.is_absolute() || path.file_name().is_none() {
        bail!("--listen {address}: must be an absolute path, unix:///path");
    }
    Ok(path)
}

/// Binds a socket. One that a killed daemon left is replaced: the state's lock
/// already says that no other daemon lives.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() {
            bail!(
                "{} is there and no socket; it is left alone",
                path.display()
            );
        }
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    // Bound under another name first: the socket appears with its rights set.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new)
        .with_context(|| format!("cannot bind the socket {}", new.display()))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)
        .with_context(|| format!("cannot put the socket at {}", path.display()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_absolute_unix_paths() {
        for address in ["unix:///run/x.sock", "/run/x.sock"] {
            assert_eq!(path_of(address).unwrap(), Path::new("/run/x.sock"));
        }
        for address in [
            "tcp://127.0.0.1:1",
            "unix://x.sock",
            "x.sock",
            "",
            "unix:///",
        ] {
            let error = path_of(address).unwrap_err().to_string();
            assert!(error.contains("--listen"), "{error}");
        }
    }

    #[tokio::test]
    async fn socket_of_a_dead_daemon_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/cri.sock");
        drop(listen(&path).unwrap());
        let _live = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        let file = dir.path().join("precious");
        std::fs::write(&file, "x").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
