//! Feeding the kernel's random number generator.
#![expect(unsafe_code, reason = "ioctl with a pointer to our own buffer")]
// UNSAFETY: RNDADDENTROPY takes a structure with a trailing byte array.

use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// linux/random.h: _IOW('R', 0x03, int[2])
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// Most bytes taken; more adds nothing.
const MAX: usize = 512;

/// Mixes `bytes` into the generator and credits eight bits for each.
pub(crate) fn credit(bytes: &[u8]) -> Result<(), Errno> {
    let random = File::options()
        .write(true)
        .open("/dev/urandom")
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let bytes = &bytes[..bytes.len().min(MAX)];
    let len = u32::try_from(bytes.len()).unwrap_or(0);
    // struct rand_pool_info: bits, bytes, the bytes as whole 32-bit words.
    let mut info = vec![len * 8, len];
    info.extend(bytes.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_ne_bytes(word)
    }));
    // SAFETY: `info` holds the two counts and at least `len` bytes behind them;
    // the kernel only reads it, and it lives until the call returns.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, info.as_ptr()) };
    super::check(result.into()).map(drop)
}
