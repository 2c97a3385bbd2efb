//! The host's sockets: the listener for clients, their first line, and
//! connections to the host's services.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Longest first line: `CONNECT `, ten digits and the newline are 19 bytes.
const MAX_LINE: usize = 32;
/// The longest that a port adds to the socket's path: `_` and ten digits.
const PORT_SUFFIX: usize = 11;
/// Bytes in sockaddr_un's path with its final zero.
const MAX_PATH: usize = 108;
/// VMADDR_PORT_ANY: no port at all.
const NO_PORT: u32 = u32::MAX;

/// Listens at `path`, for nobody but the owner. A socket that a killed process
/// left there is replaced; one that somebody serves is not.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() + PORT_SUFFIX >= MAX_PATH {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the path of the vsock socket, {}, is longer than {} bytes; choose a shorter one",
                path.display(),
                MAX_PATH - PORT_SUFFIX - 1
            ),
        ));
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn is_stale(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Connects to the host's service for a port that the guest asked for.
pub(super) fn connect_service(socket_path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut path = socket_path.as_os_str().to_owned();
    path.push(format!("_{port}"));
    // Not UnixStream::connect, which blocks while the service's backlog is
    // full: the guest could stall its own device that way, for every stream.
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    connect(&socket, &SocketAddrUnix::new(PathBuf::from(path))?)?;
    Ok(socket.into())
}

/// What a client's first line came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstLine {
    /// Not all of it is there.
    Incomplete,
    /// It asks for this port of the guest.
    Connect(u32),
    /// It is something else, or the client went away.
    Refused,
}

/// Reads a client's first line, and nothing behind it: that is the stream's.
/// A line that is not complete stays in the socket.
pub(super) fn read_first_line(client: &UnixStream) -> FirstLine {
    let mut line = [0; MAX_LINE];
    let seen = match recv(client, &mut line, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN | Errno::INTR) => return FirstLine::Incomplete,
        Ok((len, _)) if len > 0 => len,
        _ => return FirstLine::Refused,
    };
    let Some(end) = line[..seen].iter().position(|&byte| byte == b'\n') else {
        return if seen == MAX_LINE {
            FirstLine::Refused
        } else {
            FirstLine::Incomplete
        };
    };
    let Some(port) = parse_connect(&line[..end]) else {
        return FirstLine::Refused;
    };
    match recv(client, &mut line[..=end], RecvFlags::DONTWAIT) {
        Ok((len, _)) if len == end + 1 => FirstLine::Connect(port),
        _ => FirstLine::Refused,
    }
}

/// The port in `CONNECT <port>`, without the newline.
fn parse_connect(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (port != NO_PORT).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};

    #[test]
    fn a_line_names_a_port() {
        assert_eq!(parse_connect(b"CONNECT 1024"), Some(1024));
        assert_eq!(parse_connect(b"CONNECT 0"), Some(0));
        assert_eq!(parse_connect(b"CONNECT 4294967294"), Some(u32::MAX - 1));
    }

    #[test]
    fn other_lines_are_refused() {
        let lines: [&[u8]; 10] = [
            b"",
            b"CONNECT",
            b"CONNECT ",
            b"CONNECT -1",
            b"CONNECT +1",
            b"CONNECT 4294967295",
            b"CONNECT 4294967296",
            b"CONNECT 1 ",
            b"connect 1",
            b"CONNECT \xff1",
        ];
        for line in lines {
            assert_eq!(parse_connect(line), None, "{line:?}");
        }
    }

    #[test]
    fn what_follows_the_line_stays_in_the_socket() {
        let (mut client, device) = UnixStream::pair().expect("a pair");
        client.write_all(b"CONN").expect("write");
        assert_eq!(read_first_line(&device), FirstLine::Incomplete);
        client.write_all(b"ECT 7\nhello\n").expect("write");
        assert_eq!(read_first_line(&device), FirstLine::Connect(7));
        let mut rest = [0; 6];
        (&device).read_exact(&mut rest).expect("read");
        assert_eq!(&rest, b"hello\n");
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut client, device) = UnixStream::pair().expect("a pair");
        client.write_all(&[b'x'; MAX_LINE]).expect("write");
        assert_eq!(read_first_line(&device), FirstLine::Refused);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vsock");
        drop(listen(&path).expect("the first"));
        let served = listen(&path).expect("the stale one is replaced");
        let refused = listen(&path).expect_err("the served one is kept");
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        drop(served);
    }

    #[test]
    fn a_file_in_the_way_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vsock");
        fs::write(&path, "precious").expect("write");
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).expect("read"), b"precious");
    }

    #[test]
    fn a_path_without_room_for_ports_is_refused() {
        let path = PathBuf::from("/tmp").join("x".repeat(MAX_PATH - PORT_SUFFIX - 5));
        assert_eq!(
            listen(&path).expect_err("too long").kind(),
            ErrorKind::InvalidInput
        );
    }

    proptest! {
        #[test]
        fn any_line_is_a_port_or_refused(line in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(port) = parse_connect(&line) {
                prop_assert!(line.ends_with(port.to_string().as_bytes()));
            }
        }
    }
}
