//! Reads and writes between host descriptors and guest memory, without a copy.
#![expect(
    unsafe_code,
    reason = "the kernel is given the addresses of guest memory"
)]
// UNSAFETY: preadv, pwritev and sendmsg on guest memory need raw iovecs. The
// safe wrappers take `&mut [u8]`, which guest memory can never be: the guest
// changes it at any time.

use crate::chain::{Buffers, Slice};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::bitmap::Bitmap;

/// Most iovecs in one call (Linux UIO_MAXIOV).
pub(crate) const MAX_IOVECS: usize = 1024;

/// Fills `buffers` from `file` at `offset`; fewer bytes than asked for mean the
/// end of the file.
pub(crate) fn read_at(
    file: BorrowedFd<'_>,
    buffers: &Buffers<'_>,
    offset: u64,
) -> io::Result<usize> {
    let done = transfer_at(buffers, offset, |iovecs, count, at| {
        // SAFETY: `iovecs` points to `count` iovecs that live through the call;
        // each covers a slice of guest memory that is mapped as long as the
        // borrow of `buffers`, and nobody holds a reference into guest memory.
        unsafe { libc::preadv64(file.as_raw_fd(), iovecs, count, at) }
    })?;
    mark_dirty(buffers.slices(), done);
    Ok(done)
}

/// Writes all of `buffers` to `file` at `offset`.
pub(crate) fn write_at(file: BorrowedFd<'_>, buffers: &Buffers<'_>, offset: u64) -> io::Result<()> {
    let done = transfer_at(buffers, offset, |iovecs, count, at| {
        // SAFETY: as in `read_at`; the kernel only reads the memory.
        unsafe { libc::pwritev64(file.as_raw_fd(), iovecs, count, at) }
    })?;
    if done < buffers.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Writes `buffers` to `file` at `offset`, or with `append` to its end; what is
/// not written in the end met an error after the first byte.
pub(crate) fn write_some(
    file: BorrowedFd<'_>,
    buffers: &Buffers<'_>,
    offset: u64,
    append: bool,
) -> io::Result<usize> {
    let flags = if append { libc::RWF_APPEND } else { 0 };
    let (done, error) = transfer(buffers, offset, |iovecs, count, at| {
        // SAFETY: as in `write_at`.
        unsafe { libc::pwritev2(file.as_raw_fd(), iovecs, count, at, flags) }
    });
    match error {
        Some(error) if done == 0 => Err(error),
        _ => Ok(done),
    }
}

/// One read from a stream socket that does not block. 0 is its end.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffers: &Buffers<'_>) -> io::Result<usize> {
    let mut iovecs = iovecs_from(buffers.slices(), 0);
    iovecs.truncate(MAX_IOVECS);
    let done = message(&mut iovecs, |header| {
        // SAFETY: `header` points to iovecs that live through the call; each
        // covers mapped guest memory, as in `read_at`.
        unsafe { libc::recvmsg(socket.as_raw_fd(), header, libc::MSG_DONTWAIT) }
    })?;
    mark_dirty(buffers.slices(), done);
    Ok(done)
}

/// One write to a stream socket that does not block; returns how much went.
pub(crate) fn send(socket: BorrowedFd<'_>, buffers: &Buffers<'_>) -> io::Result<usize> {
    let mut iovecs = iovecs_from(buffers.slices(), 0);
    iovecs.truncate(MAX_IOVECS);
    message(&mut iovecs, |header| {
        // SAFETY: as in `receive`; the kernel only reads the memory.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                header,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        }
    })
}

/// Reads one packet over the slices, of which there may be at most
/// [`MAX_IOVECS`]; what does not fit is lost.
pub(crate) fn read_packet<'a: 'b, 'b>(
    file: BorrowedFd<'_>,
    slices: impl Iterator<Item = &'b Slice<'a>> + Clone,
) -> io::Result<usize> {
    let iovecs: Vec<libc::iovec> = slices.clone().map(iovec).collect();
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
    let done = again(|| {
        // SAFETY: `iovecs` has `count` entries that live through the call; each
        // covers mapped guest memory, as in `read_at`.
        unsafe { libc::readv(file.as_raw_fd(), iovecs.as_ptr(), count) }
    })?;
    let mut left = done;
    for slice in slices {
        let part = slice.len().min(left);
        slice.bitmap().mark_dirty(0, part);
        left -= part;
    }
    Ok(done)
}

/// Writes one packet that begins with `head`; there may be at most
/// [`MAX_IOVECS`] - 1 slices.
pub(crate) fn write_packet(
    file: BorrowedFd<'_>,
    head: &[u8],
    rest: &Buffers<'_>,
) -> io::Result<usize> {
    let mut iovecs = Vec::with_capacity(rest.slices().len() + 1);
    iovecs.push(libc::iovec {
        iov_base: head.as_ptr().cast_mut().cast(),
        iov_len: head.len(),
    });
    iovecs.extend(rest.slices().iter().map(iovec));
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
    again(|| {
        // SAFETY: `iovecs` has `count` entries that live through the call; the
        // first covers `head`, the others mapped guest memory, as in `read_at`.
        // The kernel only reads them.
        unsafe { libc::writev(file.as_raw_fd(), iovecs.as_ptr(), count) }
    })
}

/// The result of a call, made again while signals interrupt it.
fn again(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(len) = usize::try_from(call()) {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(Errno::INTR.raw_os_error()) {
            return Err(error);
        }
    }
}

fn iovec(slice: &Slice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

/// As [`transfer`]; an error counts even after the first bytes.
fn transfer_at(
    buffers: &Buffers<'_>,
    offset: u64,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off64_t) -> isize,
) -> io::Result<usize> {
    match transfer(buffers, offset, call) {
        (_, Some(error)) => Err(error),
        (done, None) => Ok(done),
    }
}

/// Calls `call` with the iovecs left and the file offset until it transfers
/// nothing, fails, or everything is done. The bytes done, and the failure.
fn transfer(
    buffers: &Buffers<'_>,
    offset: u64,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off64_t) -> isize,
) -> (usize, Option<io::Error>) {
    let total = buffers.len();
    let mut done = 0;
    while done < total {
        let iovecs = iovecs_from(buffers.slices(), done);
        let count = libc::c_int::try_from(iovecs.len().min(MAX_IOVECS)).unwrap_or(libc::c_int::MAX);
        let Some(at) = offset
            .checked_add(done as u64)
            .and_then(|at| libc::off64_t::try_from(at).ok())
        else {
            return (done, Some(io::ErrorKind::InvalidInput.into()));
        };
        match usize::try_from(call(iovecs.as_ptr(), count, at)) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(Errno::INTR.raw_os_error()) {
                    return (done, Some(error));
                }
            }
        }
    }
    (done, None)
}

/// Sends or receives one message of `iovecs`, again if a signal interrupts.
fn message(
    iovecs: &mut [libc::iovec],
    call: impl Fn(*mut libc::msghdr) -> isize,
) -> io::Result<usize> {
    // SAFETY: msghdr is plain data, for which all-zero bytes are a valid value
    // (no name, no iovecs, no control data).
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iovecs.as_mut_ptr();
    // `as _`: the type is size_t or int, by libc; the count is at most 1024.
    header.msg_iovlen = iovecs.len() as _;
    loop {
        if let Ok(len) = usize::try_from(call(&raw mut header)) {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(Errno::INTR.raw_os_error()) {
            return Err(error);
        }
    }
}

/// The iovecs of `slices` without their first `skip` bytes.
fn iovecs_from(slices: &[Slice<'_>], mut skip: usize) -> Vec<libc::iovec> {
    let mut iovecs = Vec::with_capacity(slices.len());
    for slice in slices {
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        let Ok(rest) = slice.offset(skip) else {
            continue;
        };
        skip = 0;
        iovecs.push(libc::iovec {
            iov_base: rest.ptr_guard_mut().as_ptr().cast(),
            iov_len: rest.len(),
        });
    }
    iovecs
}

/// Tells the dirty bitmap, if the memory has one, what the kernel wrote.
fn mark_dirty(slices: &[Slice<'_>], mut len: usize) {
    for slice in slices {
        let part = slice.len().min(len);
        slice.bitmap().mark_dirty(0, part);
        len -= part;
    }
}
