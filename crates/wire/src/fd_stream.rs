//! Frames with file descriptors beside them (SCM_RIGHTS) on a unix socket.

use crate::{HEADER, WireError, body_len, encode};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most descriptors that one frame carries: a VM's kernel, initramfs and log, and
/// eight TAPs for each of eight NICs.
const MAX_FDS: usize = 67;

/// A blocking unix stream whose frames may carry descriptors.
///
/// Reads never go past the frame they are for, so descriptors are told apart by
/// the frame they came with.
#[derive(Debug)]
pub struct FdStream(UnixStream);

impl FdStream {
    /// Wraps a connected stream.
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// The stream itself, for time limits and shutdown.
    pub fn get_ref(&self) -> &UnixStream {
        &self.0
    }

    /// Sends one frame; `fds`, at most 67, go with its first byte.
    pub fn send<M: prost::Message>(
        &mut self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let frame = encode(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let sent = loop {
            match sendmsg(
                &self.0,
                &[IoSlice::new(&frame)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(io::Error::from)?,
            }
        };
        self.0.write_all(&frame[sent..])?;
        Ok(())
    }

    /// Receives one frame and its descriptors; `None` where the peer closed the
    /// connection between frames.
    pub fn recv<M: prost::Message + Default>(
        &mut self,
    ) -> Result<Option<(M, Vec<OwnedFd>)>, WireError> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER];
        match self.fill(&mut header, &mut fds)? {
            0 => return Ok(None),
            HEADER => {}
            _ => return Err(WireError::Truncated),
        }
        let mut body = vec![0; body_len(header)?];
        if self.fill(&mut body, &mut fds)? != body.len() {
            return Err(WireError::Truncated);
        }
        Ok(Some((M::decode(body.as_slice())?, fds)))
    }

    /// Reads until `buf` is full or the stream ends, collecting descriptors.
    fn fill(&mut self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, WireError> {
        let mut filled = 0;
        while filled < buf.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut buf[filled..])],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(io::Error::from)?.bytes,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if got == 0 {
                break;
            }
            filled += got;
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Hello;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_arrive_with_their_own_frame() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (FdStream::new(a), FdStream::new(b));
        let mut file = tempfile_with("the file");
        let first = Hello {
            major: 1,
            ..Hello::default()
        };
        let second = Hello {
            major: 2,
            ..Hello::default()
        };
        a.send(&first, &[]).unwrap();
        a.send(&second, &[file.as_fd()]).unwrap();
        let (message, fds) = b.recv::<Hello>().unwrap().unwrap();
        assert_eq!((message.major, fds.len()), (1, 0));
        let (message, mut fds) = b.recv::<Hello>().unwrap().unwrap();
        assert_eq!((message.major, fds.len()), (2, 1));
        file.rewind().unwrap();
        let mut text = String::new();
        std::fs::File::from(fds.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "the file");
        drop(a);
        assert!(b.recv::<Hello>().unwrap().is_none());
    }

    fn tempfile_with(text: &str) -> std::fs::File {
        let path = std::env::temp_dir().join(format!("wire-test-{}", std::process::id()));
        let mut file = std::fs::File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }
}
