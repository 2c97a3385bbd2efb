//! A file mapped into memory.
#![expect(unsafe_code, reason = "mmap")]
// UNSAFETY: no safe interface maps a file that others write to.

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::fs::File;
use std::ptr::NonNull;

/// Bytes of a file, shared with everyone who has it.
#[derive(Debug)]
pub(super) struct Mapped {
    at: NonNull<u8>,
    len: usize,
}

impl Mapped {
    /// The first `len` bytes; the file must stay that long.
    pub(super) fn shared(file: &File, len: usize) -> anyhow::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address that nothing else has.
        let at = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, 0)? };
        let at = NonNull::new(at.cast()).ok_or_else(|| anyhow::anyhow!("mapped at null"))?;
        Ok(Self { at, len })
    }

    /// A byte, read anew.
    pub(super) fn get(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: within the mapping, which lives as long as `self`; volatile, as
        // others change it.
        unsafe { self.at.add(at).read_volatile() }
    }

    /// Sets a byte.
    pub(super) fn set(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: as in `get`.
        unsafe { self.at.add(at).write_volatile(byte) }
    }

    /// Waits until the file has what was set.
    pub(super) fn sync(&self) -> anyhow::Result<()> {
        // SAFETY: the mapping's own range.
        unsafe { msync(self.at.as_ptr().cast(), self.len, MsyncFlags::SYNC)? };
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping's own range, which nothing refers to any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}
