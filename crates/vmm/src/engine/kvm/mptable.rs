//! The MP table (Intel MultiProcessor Specification 1.4): the guest's processors,
//! its one I/O APIC and how lines reach it. There is no ACPI.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::boot_params::RESERVED_START;

/// Where Linux looks for the floating pointer: the last KiB below 640 KiB.
const POINTER: u64 = 0x9_fc00;
const TABLE: u64 = RESERVED_START;
/// Physical address of each local APIC.
const LAPIC: u32 = 0xfee0_0000;
/// Physical address of the in-kernel I/O APIC.
const IOAPIC: u32 = 0xfec0_0000;
/// Version register of KVM's APICs.
const APIC_VERSION: u8 = 0x14;
/// Pins of the I/O APIC.
pub(super) const IOAPIC_PINS: u8 = 24;
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_LAPICS: u8 = 0xff;

/// The two's complement of the byte sum, so that all bytes sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, b| sum.wrapping_add(*b))
        .wrapping_neg()
}

/// Entries of the configuration table, and how many.
fn entries(vcpus: u8) -> (Vec<u8>, u16) {
    let ioapic_id = vcpus;
    let mut bytes = Vec::new();
    let mut count = 0;
    let mut add = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = ENABLED | if id == 0 { BOOT_PROCESSOR } else { 0 };
        let mut entry = [0u8; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, id, APIC_VERSION, flags]);
        // Signature (family 6) and features (FPU, APIC) as a processor of the
        // specification's day had; Linux asks CPUID.
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        add(&entry);
    }
    add(&[BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IOAPIC.to_le_bytes();
    add(&[IO_APIC, ioapic_id, APIC_VERSION, ENABLED, a, b, c, d]);
    for pin in 0..IOAPIC_PINS {
        add(&[IO_INTERRUPT, INT, 0, 0, 0, pin, ioapic_id, pin]);
    }
    add(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, 0, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, ALL_LAPICS, 1]);
    (bytes, count)
}

/// Writes the table for `vcpus` processors (at most 64) with APIC ids from 0.
pub(super) fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), GuestMemoryError> {
    let (entries, count) = entries(vcpus);
    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend_from_slice(b"PCMP");
    let length = u16::try_from(44 + entries.len()).unwrap_or(u16::MAX);
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[4, 0]);
    table.extend_from_slice(b"SPHERULEMICROVM     ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&LAPIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    memory.write_slice(&table, GuestAddress(TABLE))?;

    let mut pointer = *b"_MP_\0\0\0\0\x01\x04\0\0\0\0\0\0";
    pointer[4..8].copy_from_slice(&0x9_f000u32.to_le_bytes());
    pointer[10] = checksum(&pointer);
    memory.write_slice(&pointer, GuestAddress(POINTER))
}

#[cfg(test)]
mod tests {
    use super::super::memory::allocate;
    use super::*;

    #[test]
    fn pointer_and_table_sum_to_zero() {
        let memory = allocate(48).unwrap();
        for vcpus in [1, 2, 64] {
            write(&memory, vcpus).unwrap();
            let mut pointer = [0u8; 16];
            memory
                .read_slice(&mut pointer, GuestAddress(POINTER))
                .unwrap();
            assert_eq!(checksum(&pointer), 0);
            let length: u16 = memory.read_obj(GuestAddress(TABLE + 4)).unwrap();
            assert!(TABLE + u64::from(length) <= POINTER);
            let mut table = vec![0u8; usize::from(length)];
            memory.read_slice(&mut table, GuestAddress(TABLE)).unwrap();
            assert_eq!(checksum(&table), 0);
        }
    }

    #[test]
    fn every_processor_has_an_entry_and_one_boots() {
        let (bytes, _) = entries(3);
        let processors: Vec<_> = bytes.chunks(20).take(3).collect();
        let ids: Vec<_> = processors.iter().map(|p| (p[0], p[1], p[3])).collect();
        assert_eq!(ids, [(0, 0, 3), (0, 1, 1), (0, 2, 1)]);
    }
}
