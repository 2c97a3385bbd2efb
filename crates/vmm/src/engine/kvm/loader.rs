//! Puts kernel and initramfs into guest memory.

use linux_loader::loader::{Elf, KernelLoader};
use std::fs::File;
use std::io::{Read, Seek};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::memory::low_end;

/// Kernels lie from here on; below are the structures that boot them.
const KERNEL_MIN: u64 = 1 << 20;
/// What the identity mapping that the kernel starts with covers.
pub(super) const IDENTITY_MAPPED: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// Memory left between kernel and initramfs: early page tables, per-CPU areas.
const SLACK: u64 = 8 << 20;

/// Why this kernel or initramfs cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the {what}")]
    Read {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not an ELF file.
    #[error(
        "the kernel is no ELF file (it starts with {found:02x?}); it must be an uncompressed vmlinux"
    )]
    NotElf {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// An ELF file, but for something else.
    #[error("the kernel is an ELF file for another machine ({field} is {found}, not {wanted})")]
    WrongElf {
        /// Header field.
        field: &'static str,
        /// Its value.
        found: u16,
        /// What it must be.
        wanted: u16,
    },
    /// linux-loader found it corrupt or too large.
    #[error("the kernel is corrupt, or larger than the guest's memory of {low_mib} MiB")]
    Corrupt {
        /// Low memory of this guest.
        low_mib: u64,
        /// What linux-loader found.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// Its entry point lies outside of what was loaded.
    #[error("the kernel is corrupt: its entry point {entry:#x} lies outside of it")]
    Entry {
        /// e_entry.
        entry: u64,
    },
    /// Kernel and initramfs do not fit.
    #[error(
        "kernel (to {kernel_end:#x}) and initramfs ({initramfs} bytes) do not fit {low_mib} MiB of guest memory; give the VM more"
    )]
    TooSmall {
        /// Address after the kernel.
        kernel_end: u64,
        /// Length of the initramfs.
        initramfs: u64,
        /// Low memory of this guest.
        low_mib: u64,
    },
    /// Guest memory could not be written.
    #[error("cannot copy the {what} into guest memory")]
    Copy {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// What failed.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    /// Address of its 64-bit entry point.
    pub(super) entry: u64,
    /// Address after its last byte (of its BSS).
    pub(super) end: u64,
}

/// Loads an uncompressed ELF kernel to the physical addresses that it names.
pub(super) fn load_kernel(memory: &GuestMemoryMmap, file: &mut File) -> Result<Kernel, LoadError> {
    check_header(file)?;
    let low_mib = low_end(memory) >> 20;
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(KERNEL_MIN)))
        .map_err(|source| LoadError::Corrupt { low_mib, source })?;
    let entry = loaded.kernel_load.raw_value();
    if entry >= loaded.kernel_end || entry >= IDENTITY_MAPPED {
        return Err(LoadError::Entry { entry });
    }
    if !memory.address_in_range(GuestAddress(loaded.kernel_end)) {
        return Err(LoadError::TooSmall {
            kernel_end: loaded.kernel_end,
            initramfs: 0,
            low_mib,
        });
    }
    Ok(Kernel {
        entry,
        end: loaded.kernel_end,
    })
}

/// Names what is wrong with a file that is no x86-64 kernel at all.
fn check_header(file: &mut File) -> Result<(), LoadError> {
    let read = |source| LoadError::Read {
        what: "kernel",
        source,
    };
    file.rewind().map_err(read)?;
    let mut header = Vec::with_capacity(64);
    file.by_ref()
        .take(64)
        .read_to_end(&mut header)
        .map_err(read)?;
    if header.len() < 64 || !header.starts_with(b"\x7fELF") {
        header.truncate(8);
        return Err(LoadError::NotElf { found: header });
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    for (field, found, wanted) in [
        ("class", u16::from(header[4]), 2),
        ("byte order", u16::from(header[5]), 1),
        ("e_machine", machine, 62),
    ] {
        if found != wanted {
            return Err(LoadError::WrongElf {
                field,
                found,
                wanted,
            });
        }
    }
    Ok(())
}

/// Copies the initramfs to the top of low memory; (address, length).
pub(super) fn load_initramfs(
    memory: &GuestMemoryMmap,
    file: &mut File,
    kernel: Kernel,
) -> Result<(u64, u64), LoadError> {
    let read = |source| LoadError::Read {
        what: "initramfs",
        source,
    };
    let bytes = file.metadata().map_err(read)?.len();
    file.rewind().map_err(read)?;
    let low = low_end(memory);
    let too_small = || LoadError::TooSmall {
        kernel_end: kernel.end,
        initramfs: bytes,
        low_mib: low >> 20,
    };
    let start = low.checked_sub(bytes).ok_or_else(too_small)? & !(PAGE - 1);
    if start < kernel.end.saturating_add(SLACK) {
        return Err(too_small());
    }
    let count = usize::try_from(bytes).map_err(|_| too_small())?;
    memory
        .read_exact_volatile_from(GuestAddress(start), file, count)
        .map_err(|source| LoadError::Copy {
            what: "initramfs",
            source,
        })?;
    Ok((start, bytes))
}

#[cfg(test)]
mod tests {
    use super::super::memory::allocate;
    use super::*;
    use std::io::Write;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// ELF header and one loadable segment, with the given places.
    fn elf(entry: u64, paddr: u64, filesz: u64, memsz: u64) -> Vec<u8> {
        let mut image = vec![0u8; 64 + 56 + 16];
        image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
        image[16] = 2;
        image[18] = 62;
        image[24..32].copy_from_slice(&entry.to_le_bytes());
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54] = 56;
        image[56] = 1;
        let header = &mut image[64..120];
        header[0] = 1;
        header[8..16].copy_from_slice(&120u64.to_le_bytes());
        header[24..32].copy_from_slice(&paddr.to_le_bytes());
        header[32..40].copy_from_slice(&filesz.to_le_bytes());
        header[40..48].copy_from_slice(&memsz.to_le_bytes());
        image
    }

    #[test]
    fn sound_kernel_is_loaded_where_it_says() {
        let memory = allocate(48).unwrap();
        let image = elf(0x100_0000, 0x100_0000, 16, 4096);
        let kernel = load_kernel(&memory, &mut file_of(&image)).unwrap();
        assert_eq!((kernel.entry, kernel.end), (0x100_0000, 0x100_1000));
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        let memory = allocate(48).unwrap();
        let load = |image: &[u8]| load_kernel(&memory, &mut file_of(image)).unwrap_err();
        assert!(matches!(load(b""), LoadError::NotElf { .. }));
        assert!(matches!(load(&[0x1f; 100]), LoadError::NotElf { .. }));
        let mut arm = elf(0x100_0000, 0x100_0000, 16, 16);
        arm[18] = 183;
        let text = load(&arm).to_string();
        assert!(text.contains("e_machine is 183"), "{text}");
    }

    #[test]
    fn hostile_segments_are_refused() {
        let memory = allocate(48).unwrap();
        for (entry, paddr, filesz, memsz) in [
            (0x100_0000, u64::MAX - 8, 16, 16),
            (0x100_0000, 0x100_0000, u64::MAX, 16),
            (0x100_0000, 0x100_0000, 1 << 20, 16),
            (0x100_0000, 0x100_0000, 16, u64::MAX),
            (0x100_0000, 0x100_0000, 16, 1 << 30),
            (0x200_0000, 0x100_0000, 16, 16),
            (0x1000, 0x100_0000, 16, 16),
            (0x100_0000, 0x1000_0000, 16, 16),
        ] {
            let image = elf(entry, paddr, filesz, memsz);
            assert!(
                load_kernel(&memory, &mut file_of(&image)).is_err(),
                "{entry:#x} {paddr:#x} {filesz:#x} {memsz:#x}"
            );
        }
    }

    #[test]
    fn truncated_kernel_is_refused() {
        let memory = allocate(48).unwrap();
        let image = elf(0x100_0000, 0x100_0000, 16, 4096);
        for length in [63, 64, 100, 120, image.len() - 1] {
            assert!(load_kernel(&memory, &mut file_of(&image[..length])).is_err());
        }
    }

    #[test]
    fn initramfs_lies_at_the_top_of_low_memory() {
        let memory = allocate(48).unwrap();
        let kernel = Kernel {
            entry: 0x100_0000,
            end: 0x100_1000,
        };
        let placed = load_initramfs(&memory, &mut file_of(&[7; 5000]), kernel).unwrap();
        assert_eq!(placed, ((48 << 20) - 8192, 5000));
        let byte: u8 = memory.read_obj(GuestAddress(placed.0 + 4999)).unwrap();
        assert_eq!(byte, 7);
    }

    #[test]
    fn initramfs_that_does_not_fit_is_refused() {
        let memory = allocate(48).unwrap();
        let kernel = Kernel {
            entry: 0x100_0000,
            end: 47 << 20,
        };
        assert!(matches!(
            load_initramfs(&memory, &mut file_of(&[7; 5000]), kernel),
            Err(LoadError::TooSmall { .. })
        ));
    }
}
