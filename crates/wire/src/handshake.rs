//! The version handshake: both sides send [`Hello`] first, then compare.

use crate::{WireError, proto::Hello, read_frame, write_frame};
use std::io::{Read, Write};

/// Version of both private wires. Peers with another major version refuse to talk.
pub const MAJOR: u32 = 1;
/// Raised when calls or fields are added.
pub const MINOR: u32 = 0;

/// This side's greeting; `software` is the name of the program.
pub fn hello(software: &str) -> Hello {
    Hello {
        major: MAJOR,
        minor: MINOR,
        software: format!("{software} {}", env!("CARGO_PKG_VERSION")),
    }
}

/// Refuses a peer of another major version.
pub fn check_hello(theirs: &Hello) -> Result<(), WireError> {
    if theirs.major == MAJOR {
        return Ok(());
    }
    // The name is the peer's own text: kept short, it ends up in logs.
    let software = theirs.software.chars().take(64).collect();
    Err(WireError::Version {
        theirs: theirs.major,
        software,
    })
}

/// Both halves of the handshake on a blocking stream.
pub fn handshake(stream: &mut (impl Read + Write), software: &str) -> Result<Hello, WireError> {
    write_frame(stream, &hello(software))?;
    let theirs: Hello = read_frame(stream)?.ok_or(WireError::Truncated)?;
    check_hello(&theirs)?;
    Ok(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn equal_majors_agree() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || handshake(&mut b, "b").unwrap());
        assert!(handshake(&mut a, "a").unwrap().software.starts_with("b "));
        assert!(other.join().unwrap().software.starts_with("a "));
    }

    #[test]
    fn another_major_is_refused_by_name() {
        let theirs = Hello {
            major: MAJOR + 1,
            ..hello("newer")
        };
        let error = check_hello(&theirs).unwrap_err().to_string();
        assert!(
            error.contains("newer") && error.contains("matching versions"),
            "{error}"
        );
    }
}
