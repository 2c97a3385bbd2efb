//! The walker against tables made by hand.

use super::super::super::memory::allocate;
use super::*;
use proptest::prelude::*;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const FRAME: u64 = 0x10_0000;
const ALL: u64 = PRESENT | WRITABLE | USER;
/// Third page of the table, so that an index of zero hides nothing.
const ADDRESS_OF_PAGE: u64 = 0x40_2000;

fn kernel() -> Paging {
    Paging {
        cr0: CR0_PG | CR0_WP,
        cr3: PML4,
        cr4: 0,
        efer: EFER_LMA | EFER_NXE,
        user: false,
        alignment_check: false,
    }
}

/// ADDRESS_OF_PAGE maps to FRAME with `leaf` rights, others allow all.
fn memory(leaf: u64) -> GuestMemoryMmap {
    let memory = allocate(2).unwrap();
    put(&memory, PML4, PDPT | ALL);
    put(&memory, PDPT, DIRECTORY | ALL);
    put(&memory, DIRECTORY + 2 * 8, TABLE | ALL);
    put(&memory, TABLE + 2 * 8, FRAME | leaf);
    memory
}

fn put(memory: &GuestMemoryMmap, at: u64, entry: u64) {
    memory.write_obj(entry, GuestAddress(at)).unwrap();
}

fn get(memory: &GuestMemoryMmap, at: u64) -> u64 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

/// Error code of the fault that a translation raises, if it does.
fn fault(paging: Paging, leaf: u64, access: Access) -> Option<u32> {
    let memory = memory(leaf);
    match View::new(&memory, paging).translate(ADDRESS_OF_PAGE + 5, access) {
        Ok(physical) => {
            assert_eq!(physical, FRAME + 5);
            None
        }
        Err(WalkError::PageFault {
            address,
            error_code,
        }) => {
            assert_eq!(address, ADDRESS_OF_PAGE + 5);
            // A fault leaves the tables as they were.
            assert_eq!(get(&memory, TABLE + 2 * 8), FRAME | leaf);
            assert_eq!(get(&memory, PML4), PDPT | ALL);
            Some(error_code)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn missing_entry_faults_without_the_present_bit() {
    assert_eq!(fault(kernel(), 0, Access::Read), Some(0));
    assert_eq!(fault(kernel(), 0, Access::Write), Some(FAULT_WRITE));
    let user = Paging {
        user: true,
        ..kernel()
    };
    assert_eq!(
        fault(user, WRITABLE | USER, Access::Fetch),
        Some(FAULT_USER | FAULT_FETCH)
    );
}

#[test]
fn user_may_use_only_user_pages() {
    let user = Paging {
        user: true,
        ..kernel()
    };
    assert_eq!(fault(user, ALL, Access::Write), None);
    assert_eq!(
        fault(user, PRESENT | WRITABLE, Access::Read),
        Some(FAULT_PRESENT | FAULT_USER)
    );
    assert_eq!(
        fault(user, PRESENT | USER, Access::Write),
        Some(FAULT_PRESENT | FAULT_WRITE | FAULT_USER)
    );
}

#[test]
fn write_protection_binds_the_kernel_only_with_cr0_wp() {
    let read_only = PRESENT | USER;
    assert_eq!(
        fault(kernel(), read_only, Access::Write),
        Some(FAULT_PRESENT | FAULT_WRITE)
    );
    let without = Paging {
        cr0: CR0_PG,
        ..kernel()
    };
    assert_eq!(fault(without, read_only, Access::Write), None);
    let user = Paging {
        user: true,
        ..without
    };
    assert!(fault(user, read_only, Access::Write).is_some());
}

#[test]
fn smap_keeps_the_kernel_from_user_pages_unless_ac_is_set() {
    let smap = Paging {
        cr4: CR4_SMAP,
        ..kernel()
    };
    assert_eq!(fault(smap, ALL, Access::Read), Some(FAULT_PRESENT));
    assert_eq!(fault(smap, PRESENT | WRITABLE, Access::Read), None);
    let allowed = Paging {
        alignment_check: true,
        ..smap
    };
    assert_eq!(fault(allowed, ALL, Access::Read), None);
}

#[test]
fn no_execute_stops_fetches_and_is_reserved_without_nxe() {
    let leaf = ALL | NO_EXECUTE;
    assert_eq!(
        fault(kernel(), leaf, Access::Fetch),
        Some(FAULT_PRESENT | FAULT_FETCH)
    );
    assert_eq!(fault(kernel(), leaf, Access::Read), None);
    let old = Paging {
        efer: EFER_LMA,
        ..kernel()
    };
    assert_eq!(
        fault(old, leaf, Access::Read),
        Some(FAULT_PRESENT | FAULT_RESERVED)
    );
}

#[test]
fn a_read_marks_accessed_and_a_write_also_dirty() {
    let memory = memory(ALL);
    let view = View::new(&memory, kernel());
    view.translate(ADDRESS_OF_PAGE, Access::Read).unwrap();
    for at in [PML4, PDPT, DIRECTORY + 16, TABLE + 16] {
        assert_eq!(get(&memory, at) & (ACCESSED | DIRTY), ACCESSED, "{at:#x}");
    }
    view.translate(ADDRESS_OF_PAGE, Access::Write).unwrap();
    assert_eq!(get(&memory, TABLE + 16) & DIRTY, DIRTY);
    assert_eq!(get(&memory, DIRECTORY + 16) & DIRTY, 0);
}

#[test]
fn large_pages_keep_the_lower_address_bits() {
    let memory = memory(ALL);
    // 2 MiB with the PAT bit (12) set, which is no address bit there.
    put(&memory, DIRECTORY + 3 * 8, 0x1_4000_1000 | LARGE | ALL);
    put(&memory, PDPT + 8, 0x80_0000_0000 | LARGE | ALL);
    let view = View::new(&memory, kernel());
    let translate = |address| view.translate(address, Access::Read).unwrap();
    assert_eq!(translate(0x60_0000 + 0x12_3456), 0x1_4012_3456);
    assert_eq!(translate((1 << 30) + 0x1234_5678), 0x80_1234_5678);
    put(&memory, PML4 + 8, PDPT | LARGE | ALL);
    assert!(matches!(
        view.translate(1 << 39, Access::Read),
        Err(WalkError::PageFault { error_code: 9, .. })
    ));
}

#[test]
fn five_levels_are_walked_where_cr4_says() {
    let memory = memory(ALL);
    put(&memory, 0x5000 + 8, PML4 | ALL);
    let paging = Paging {
        cr3: 0x5000,
        cr4: CR4_LA57,
        ..kernel()
    };
    let view = View::new(&memory, paging);
    let physical = view.translate(1 << 48 | ADDRESS_OF_PAGE, Access::Read);
    assert_eq!(physical.unwrap(), FRAME);
}

#[test]
fn addresses_that_are_not_canonical_are_told_apart() {
    let memory = memory(ALL);
    let view = View::new(&memory, kernel());
    for address in [1 << 47, 0xffff_7fff_ffff_ffff, 1 << 63] {
        assert!(matches!(
            view.translate(address, Access::Read),
            Err(WalkError::NotCanonical(_))
        ));
    }
    assert!(matches!(
        view.translate(0xffff_8000_0000_0000, Access::Read),
        Err(WalkError::PageFault { .. })
    ));
}

#[test]
fn access_across_a_page_border_faults_before_it_writes() {
    let memory = memory(ALL);
    let view = View::new(&memory, kernel());
    let last = ADDRESS_OF_PAGE + 4094;
    assert!(view.write(last, &[1, 2, 3, 4]).is_err());
    assert_eq!(
        memory.read_obj::<u16>(GuestAddress(FRAME + 4094)).unwrap(),
        0
    );
    put(&memory, TABLE + 3 * 8, FRAME | 0x3000 | ALL);
    view.write(last, &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 4];
    view.read(last, &mut back, Access::Read).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    assert_eq!(
        memory
            .read_obj::<u16>(GuestAddress(FRAME + 0x3000))
            .unwrap(),
        0x403
    );
}

#[test]
fn tables_or_frames_outside_of_memory_are_errors() {
    let memory = memory(ALL);
    put(&memory, TABLE + 4 * 8, 0xdead_0000_0000 | ALL);
    let view = View::new(&memory, kernel());
    assert!(matches!(
        view.write(ADDRESS_OF_PAGE + 0x2000, &[1]),
        Err(WalkError::NoMemory(_))
    ));
    put(&memory, PML4, 0xdead_0000_0000 | ALL);
    assert!(matches!(
        view.translate(ADDRESS_OF_PAGE, Access::Read),
        Err(WalkError::NoMemory(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn hostile_tables_never_panic(
        entries in proptest::collection::vec((0u64..0x8000, any::<u64>()), 1..64),
        cr3 in any::<u64>(),
        cr4 in any::<u64>(),
        address in any::<u64>(),
        length in 0usize..10_000,
    ) {
        let memory = memory(ALL);
        for (at, entry) in entries {
            put(&memory, at & !7, entry & 0xffff_ffff_001f_ffff);
        }
        for cr3 in [cr3, PML4] {
            let view = View::new(&memory, Paging { cr3, cr4, ..kernel() });
            for access in [Access::Read, Access::Write, Access::Fetch] {
                let _ = view.translate(address, access);
                let _ = view.translate(address & 0x7f_ffff, access);
            }
            let _ = view.write(address & 0x7f_ffff, &vec![0; length]);
        }
    }
}
