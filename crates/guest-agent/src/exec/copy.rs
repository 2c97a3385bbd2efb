//! Files of a container, in and out by a process's standard streams: what
//! `spherule cp` does, also with images that have no program for it.

use crate::error::AgentError;
use file_copy::{CopyError, Links, Receiver};
use guest_api::proto::file_copy::Way;
use guest_api::proto::{CopyItem, FileCopy};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A checked request.
#[derive(Debug)]
pub(crate) enum Copy {
    /// To stdout.
    Send(PathBuf),
    /// From stdin; the name is the copy's where the path is a directory.
    Receive(PathBuf, Option<OsString>),
}

/// Checks the request.
pub(super) fn check(request: FileCopy) -> Result<Copy, AgentError> {
    if request.path.is_empty() || request.path.contains(&0) {
        return Err(AgentError::invalid("copy.path", "is no path"));
    }
    let way = request.way();
    let path = PathBuf::from(OsString::from_vec(request.path));
    match way {
        Way::Send => Ok(Copy::Send(path)),
        Way::Receive => {
            let plain = |name: &[u8]| {
                !matches!(name, b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
            };
            if !plain(&request.name) {
                return Err(AgentError::invalid("copy.name", "is no single name"));
            }
            let name = (!request.name.is_empty()).then(|| OsString::from_vec(request.name));
            Ok(Copy::Receive(path, name))
        }
        Way::Unspecified => Err(AgentError::invalid("copy.way", "there is no such way")),
    }
}

/// Copies; in a process of its own, which has joined the container. Returns its exit
/// code: 1 where something is missing, which stderr says.
pub(super) fn run(copy: &Copy) -> i32 {
    let copied = match copy {
        Copy::Send(path) => send(path),
        Copy::Receive(path, name) => receive(path, name.as_deref()),
    };
    match copied {
        Ok(false) => 0,
        Ok(true) => 1,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            tell(&format!("{error}{}", cause.unwrap_or_default()));
            1
        }
    }
}

/// A line of stderr, in one piece.
fn tell(what: &str) {
    // Nobody to tell is nothing to do about.
    let _ = io::stderr().write_all(format!("{what}\n").as_bytes());
}

fn send(path: &Path) -> Result<bool, CopyError> {
    let mut stdout = BufWriter::with_capacity(file_copy::PIECE * 2, own(rustix::stdio::stdout())?);
    let left_out = file_copy::send(path, &mut |item| {
        wire::write_frame(&mut stdout, &item).map_err(io::Error::other)
    })?;
    stdout.flush().map_err(CopyError::Unwanted)?;
    Ok(left_out)
}

fn receive(path: &Path, name: Option<&OsStr>) -> Result<bool, CopyError> {
    let mut stdin = own(rustix::stdio::stdin())?;
    let mut receiver = Receiver::new(path, name, Links::Keep)?;
    let mut decoder = wire::FrameDecoder::default();
    let mut bytes = vec![0; file_copy::PIECE];
    let mut left_out = false;
    loop {
        let got = match stdin.read(&mut bytes) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(CopyError::CutOff),
        };
        decoder.push(&bytes[..got]);
        while let Some(item) = decoder
            .next_message::<CopyItem>()
            .map_err(|_| CopyError::Broken("an item that is none"))?
        {
            if let Some(what) = receiver.take(item)? {
                // What the sender left out is told here, too: it says so nowhere else.
                left_out = true;
                tell(&what);
            }
        }
    }
    receiver.finish()?;
    Ok(left_out)
}

fn own(fd: BorrowedFd<'_>) -> Result<File, CopyError> {
    let owned = fd.as_fd().try_clone_to_owned();
    Ok(owned.map_err(CopyError::Unwanted)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_fields_are_named() {
        let field = |way: Way, path: &[u8], name: &[u8]| {
            let request = FileCopy {
                way: way.into(),
                path: path.to_vec(),
                name: name.to_vec(),
            };
            check(request).map_err(|e| e.into_wire().field).err()
        };
        assert_eq!(field(Way::Send, b"/etc", b""), None);
        assert_eq!(field(Way::Receive, b"tmp", b"name"), None);
        let is = |name: &str| Some(name.to_owned());
        assert_eq!(field(Way::Send, b"", b""), is("copy.path"));
        assert_eq!(field(Way::Send, b"/a\0", b""), is("copy.path"));
        assert_eq!(field(Way::Unspecified, b"/", b""), is("copy.way"));
        for name in [&b".."[..], b".", b"a/b", b"a\0"] {
            assert_eq!(field(Way::Receive, b"/", name), is("copy.name"));
        }
    }
}
