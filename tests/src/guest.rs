//! Guests that are not as they should be: kernels and initramfs archives made
//! here.

/// A newc cpio archive of executable files (Documentation/driver-api/
/// early-userspace/buffer-format.rst). The kernel takes several, one after the
/// other.
pub fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end: (&str, &[u8]) = ("TRAILER!!!", b"");
    for (number, (name, content)) in files.iter().chain([&end]).enumerate() {
        let mode = if *name == end.0 { 0 } else { 0o100_755 };
        let fields = [
            number + 1,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// Where [`spinning_kernel`] lies in guest memory.
const LOAD_ADDRESS: u64 = 1 << 20;
/// Where its code lies in the file.
const CODE_OFFSET: u64 = 0x1000;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry point (xen/include/public/elfnote.h).
const PVH_ENTRY: u32 = 18;

/// An ELF kernel of one instruction that jumps to itself: it boots, touches no
/// device and says nothing. Entered in 32-bit mode (PVH) or in 64-bit mode alike.
pub fn spinning_kernel() -> Vec<u8> {
    let code = [0xeb, 0xfe];
    let mut note = Vec::new();
    for word in [4, 8, PVH_ENTRY] {
        note.extend_from_slice(&u32::to_le_bytes(word));
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());

    let (header, segment): (u16, u16) = (64, 56);
    let note_offset = u64::from(header + 2 * segment);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2_u16, 62] {
        elf.extend_from_slice(&half.to_le_bytes()); // executable, x86-64
    }
    elf.extend_from_slice(&1_u32.to_le_bytes());
    for long in [LOAD_ADDRESS, u64::from(header), 0] {
        elf.extend_from_slice(&long.to_le_bytes()); // entry, program headers
    }
    elf.extend_from_slice(&0_u32.to_le_bytes());
    for half in [header, segment, 2, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    // Type, flags, offset, length, memory, alignment: PT_LOAD, PT_NOTE.
    let code_len = code.len() as u64;
    let note_len = note.len() as u64;
    for (kind, flags, offset, length, memory, align) in [
        (1_u32, 5_u32, CODE_OFFSET, code_len, 4096, 4096_u64),
        (4, 4, note_offset, note_len, note_len, 4),
    ] {
        elf.extend_from_slice(&kind.to_le_bytes());
        elf.extend_from_slice(&flags.to_le_bytes());
        for long in [offset, LOAD_ADDRESS, LOAD_ADDRESS, length, memory, align] {
            elf.extend_from_slice(&long.to_le_bytes());
        }
    }
    elf.extend_from_slice(&note);
    elf.resize(usize::try_from(CODE_OFFSET).unwrap_or_default(), 0);
    elf.extend_from_slice(&code);
    elf
}
