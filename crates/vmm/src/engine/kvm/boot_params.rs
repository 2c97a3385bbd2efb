//! What Linux's 64-bit boot protocol wants in memory (Documentation/arch/x86/boot.rst):
//! zero page, command line, memory map, a seed for its random numbers.
//!
//! | address | what                                        |
//! |---------|---------------------------------------------|
//! | 0x500   | GDT and IDT (`regs`)                        |
//! | 0x7000  | zero page                                   |
//! | 0x8000  | setup_data with the seed                    |
//! | 0x9000  | page tables, three pages (`regs`)           |
//! | 0x20000 | command line                                |
//! | 0x9f000 | MP table (`mptable`), reserved up to 640 KiB |

use linux_loader::loader::bootparam::{SETUP_RNG_SEED, boot_e820_entry, boot_params};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_memory::{GuestMemoryError, GuestMemoryRegion};

/// Address of the zero page.
pub(super) const ZERO_PAGE: u64 = 0x7000;
const SETUP_DATA: u64 = 0x8000;
const CMDLINE: u64 = 0x2_0000;
/// Linux cuts longer command lines (COMMAND_LINE_SIZE, with its NUL).
const CMDLINE_MAX: usize = 2047;
/// Start of what the memory map withholds below 1 MiB.
pub(super) const RESERVED_START: u64 = 0x9_f000;
const HIGH_RAM_START: u64 = 1 << 20;
/// "No boot loader ID assigned".
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Protocol 2.15: XLF flags, setup_data.
const PROTOCOL_VERSION: u16 = 0x20f;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Bytes of random seed; Linux takes what it is given, 32 fill its pool.
const SEED_LEN: usize = 32;

/// The boot parameters cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootParamsError {
    /// Linux would cut it.
    #[error("the kernel command line has {0} bytes; at most {CMDLINE_MAX} fit")]
    CmdlineTooLong(usize),
    /// A NUL byte ends the command line.
    #[error("the kernel command line has a NUL byte at {0}")]
    CmdlineNul(usize),
    /// A value that the protocol has no room for.
    #[error("the initramfs ({0} bytes) exceeds the boot protocol's 4 GiB")]
    Initramfs(u64),
    /// No random numbers.
    #[error("the host gives no random numbers for the guest's seed")]
    Seed(#[source] std::io::Error),
    /// Guest memory could not be written.
    #[error("cannot write the boot parameters into guest memory")]
    Write(#[from] GuestMemoryError),
}

/// The memory map: RAM without the legacy area below 1 MiB.
fn memory_map(memory: &GuestMemoryMmap) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, kind| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: kind,
    };
    let mut map = vec![
        entry(0, RESERVED_START, E820_RAM),
        entry(RESERVED_START, HIGH_RAM_START, E820_RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        map.push(entry(
            start.max(HIGH_RAM_START),
            start + region.len(),
            E820_RAM,
        ));
    }
    map
}

/// Writes zero page, seed and command line; `initramfs` is (address, bytes).
pub(super) fn write(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    initramfs: (u64, u64),
) -> Result<(), BootParamsError> {
    if cmdline.len() > CMDLINE_MAX {
        return Err(BootParamsError::CmdlineTooLong(cmdline.len()));
    }
    if let Some(at) = cmdline.bytes().position(|b| b == 0) {
        return Err(BootParamsError::CmdlineNul(at));
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;
    write_seed(memory)?;

    let too_large = |_| BootParamsError::Initramfs(initramfs.1);
    let mut params = boot_params::default();
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL_VERSION;
    params.hdr.cmd_line_ptr = u32::try_from(CMDLINE).map_err(too_large)?;
    params.hdr.cmdline_size = u32::try_from(cmdline.len()).map_err(too_large)?;
    params.hdr.ramdisk_image = u32::try_from(initramfs.0).map_err(too_large)?;
    params.hdr.ramdisk_size = u32::try_from(initramfs.1).map_err(too_large)?;
    params.hdr.setup_data = SETUP_DATA;
    let map = memory_map(memory);
    let mut table = params.e820_table;
    let mut entries = 0u8;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = entry;
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    memory.write_obj(params, GuestAddress(ZERO_PAGE))?;
    Ok(())
}

/// Writes the seed as the only setup_data: next (8), type (4), length (4), data.
fn write_seed(memory: &GuestMemoryMmap) -> Result<(), BootParamsError> {
    let mut seed = [0u8; SEED_LEN];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| BootParamsError::Seed(errno.into()))?;
    let mut data = Vec::with_capacity(16 + SEED_LEN);
    data.extend_from_slice(&0u64.to_le_bytes());
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&32u32.to_le_bytes());
    data.extend_from_slice(&seed);
    memory.write_slice(&data, GuestAddress(SETUP_DATA))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::memory::{HOLE_END, HOLE_START, allocate};
    use super::*;

    fn page(memory: &GuestMemoryMmap) -> boot_params {
        memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap()
    }

    #[test]
    fn zero_page_points_at_what_was_written() {
        let memory = allocate(64).unwrap();
        write(&memory, "console=hvc0", (0x300_0000, 5000)).unwrap();
        let params = page(&memory);
        let header = params.hdr;
        assert_eq!({ header.ramdisk_image }, 0x300_0000);
        assert_eq!({ header.ramdisk_size }, 5000);
        let mut text = [0u8; 13];
        memory
            .read_slice(&mut text, GuestAddress(header.cmd_line_ptr.into()))
            .unwrap();
        assert_eq!(&text, b"console=hvc0\0");
    }

    #[test]
    fn memory_map_covers_all_ram_and_not_the_hole() {
        let memory = allocate(4096).unwrap();
        write(&memory, "", (0x300_0000, 0)).unwrap();
        let params = page(&memory);
        let table = params.e820_table;
        let ranges: Vec<_> = table[..usize::from(params.e820_entries)]
            .iter()
            .map(|e| ({ e.addr }, { e.addr } + { e.size }, { e.r#type }))
            .collect();
        assert_eq!(
            ranges,
            [
                (0, RESERVED_START, E820_RAM),
                (RESERVED_START, HIGH_RAM_START, E820_RESERVED),
                (HIGH_RAM_START, HOLE_START, E820_RAM),
                (HOLE_END, HOLE_END + (1 << 30), E820_RAM),
            ]
        );
    }

    #[test]
    fn each_guest_gets_a_seed_of_its_own() {
        let seed = |memory: &GuestMemoryMmap| {
            let mut seed = [0u8; SEED_LEN];
            memory
                .read_slice(&mut seed, GuestAddress(SETUP_DATA + 16))
                .unwrap();
            seed
        };
        let (one, two) = (allocate(64).unwrap(), allocate(64).unwrap());
        write(&one, "", (0, 0)).unwrap();
        write(&two, "", (0, 0)).unwrap();
        assert_ne!(seed(&one), seed(&two));
        assert_ne!(seed(&one), [0; SEED_LEN]);
    }

    #[test]
    fn command_line_that_linux_would_cut_is_refused() {
        let memory = allocate(64).unwrap();
        assert!(matches!(
            write(&memory, &"x".repeat(2048), (0, 0)),
            Err(BootParamsError::CmdlineTooLong(2048))
        ));
        assert!(matches!(
            write(&memory, "a\0b", (0, 0)),
            Err(BootParamsError::CmdlineNul(1))
        ));
    }
}
