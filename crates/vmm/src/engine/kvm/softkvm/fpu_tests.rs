//! The XSAVE instructions' effects against this processor's own.
#![expect(unsafe_code)]
// UNSAFETY: the instructions themselves are run for comparison.

use super::*;
use proptest::prelude::*;
use std::arch::asm;

const AREA: usize = IMAGE_LEN;

#[repr(C, align(64))]
#[derive(Clone)]
struct Area([u8; AREA]);

impl Area {
    fn new() -> Box<Self> {
        Box::new(Self([0; AREA]))
    }
}

/// x87, SSE, AVX and AVX-512 as far as this processor has switched them on;
/// 0 if it cannot do XSAVEC.
fn enabled() -> u64 {
    let has_xsave = std::arch::is_x86_feature_detected!("xsave");
    if !has_xsave || !std::arch::is_x86_feature_detected!("xsavec") {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: XSAVE is on, as the feature detection asks the system.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    (u64::from(high) << 32 | u64::from(low)) & 0xe7
}

/// Loads the processor's state from `from` (XRSTOR) and stores it to
/// `standard` (XSAVE) and `compacted` (XSAVEC), then has its own state back.
fn on_processor(
    mask: u64,
    from: &Area,
    standard: &mut Area,
    compacted: &mut Area,
    restore_mask: u64,
) {
    let mut own = Area::new();
    let parts = |mask: u64| (mask & 0xffff_ffff, mask >> 32);
    let (all_low, all_high) = parts(mask);
    let (low, high) = parts(restore_mask);
    // SAFETY: the areas are 4096 bytes at a multiple of 64, enough for the
    // components of `mask`; `from` is a valid area; registers are restored.
    unsafe {
        asm!(
            "mov rax, {all_low}", "mov rdx, {all_high}", "xsave64 [{own}]",
            "mov rax, {low}", "mov rdx, {high}", "xrstor64 [{from}]",
            "mov rax, {all_low}", "mov rdx, {all_high}",
            "xsave64 [{standard}]", "xsavec64 [{compacted}]", "xrstor64 [{own}]",
            own = in(reg) &raw mut *own,
            from = in(reg) from,
            standard = in(reg) standard,
            compacted = in(reg) compacted,
            all_low = in(reg) all_low, all_high = in(reg) all_high,
            low = in(reg) low, high = in(reg) high,
            out("rax") _, out("rdx") _,
        );
    }
}

/// An area in standard format with these components in use and bytes of
/// `pattern`, and MXCSR.
fn area(layout: &Layout, in_use: u64, pattern: u8, mxcsr: u32) -> Box<Area> {
    let mut area = Area::new();
    let bytes = &mut area.0;
    bytes[..2].copy_from_slice(&FCW_INIT.to_le_bytes());
    bytes[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&mxcsr.to_le_bytes());
    let mut next = pattern;
    let mut fill = |bytes: &mut [u8]| {
        for byte in bytes {
            next = next.wrapping_mul(181).wrapping_add(59);
            *byte = next;
        }
    };
    if in_use & X87 != 0 {
        bytes[4] = pattern;
        for register in 0..8 {
            let at = ST_AT + 16 * register;
            fill(&mut bytes[at..at + 10]);
        }
    }
    if in_use & SSE != 0 {
        fill(&mut bytes[XMM_AT..XMM_END]);
    }
    for (_, standard, _) in layout.extended(in_use, None) {
        fill(&mut bytes[standard]);
    }
    bytes[HEADER_AT..HEADER_AT + 8].copy_from_slice(&in_use.to_le_bytes());
    area
}

/// What the processor holds after loading `from`, as KVM would give it.
fn image_of(mask: u64, from: &Area) -> Image {
    let mut standard = Area::new();
    on_processor(mask, from, &mut standard, &mut Area::new(), mask);
    Image::new(Box::new(standard.0))
}

fn components(mask: u64) -> impl Strategy<Value = u64> {
    any::<u64>().prop_map(move |bits| bits & mask)
}

proptest! {
    #[test]
    fn save_writes_what_the_processor_does(
        in_use in components(0xe7), requested in components(0xe7), pattern in any::<u8>(),
    ) {
        let mask = enabled();
        if mask == 0 {
            return Ok(());
        }
        let layout = Layout::of_host();
        let loaded = area(&layout, in_use & mask, pattern, MXCSR_INIT);
        let image = image_of(mask, &loaded);
        let requested = requested & mask;
        // Same garbage in both, to see what is left alone.
        let (mut standard, mut compacted) = (Area::new(), Area::new());
        standard.0[XCOMP_AT + 64..].fill(0x55);
        let mut ours = standard.0;
        native_save(requested, &loaded, mask, &mut standard, &mut compacted);
        image.save(&layout, requested, SaveFormat::Standard, &mut ours);
        prop_assert!(ours == standard.0);
        let mut ours = [0; AREA];
        image.save(&layout, requested, SaveFormat::Compacted, &mut ours);
        prop_assert!(ours == compacted.0);
    }

    #[test]
    fn restore_loads_what_the_processor_does(
        before in components(0xe7), in_use in components(0xe7), requested in components(0xe7),
        pattern in any::<u8>(), compact in any::<bool>(), mxcsr in prop_oneof![Just(0x1f80), Just(0x1fa5)],
    ) {
        let mask = enabled();
        if mask == 0 {
            return Ok(());
        }
        let layout = Layout::of_host();
        let first = area(&layout, before & mask, 7, MXCSR_INIT);
        let mut image = image_of(mask, &first);
        let mut second = area(&layout, in_use & mask, pattern, mxcsr);
        if compact {
            let mut compacted = Area::new();
            image_of(mask, &second).save(&layout, mask, SaveFormat::Compacted, &mut compacted.0);
            second = compacted;
        }
        let requested = requested & mask;
        let mut native = Area::new();
        native_restore(mask, &first, &second, requested, &mut native);
        prop_assert!(image.restore(&layout, requested, mask, false, &second.0));
        for range in [0..MXCSR_AT, MXCSR_AT..MXCSR_MASK_AT, ST_AT..464] {
            prop_assert_eq!(&image.bytes[range.clone()], &native.0[range.clone()], "{:?}", range);
        }
        for (bit, range, _) in layout.extended(mask, None) {
            prop_assert!(image.bytes[range.clone()] == native.0[range], "component {bit:#x}");
        }
    }

    #[test]
    fn restore_of_hostile_areas_never_panics(
        header in proptest::collection::vec(any::<u8>(), 64),
        requested in any::<u64>(), only in any::<bool>(), top in any::<bool>(),
    ) {
        let layout = Layout::of_host();
        let mut area = Area::new();
        area.0[HEADER_AT..HEADER_AT + 64].copy_from_slice(&header);
        if top {
            area.0[XCOMP_AT + 8..EXTENDED_AT].fill(0);
            area.0[XCOMP_AT..XCOMP_AT + 8].copy_from_slice(&(0xe7 | COMPACTED).to_le_bytes());
        }
        let mut image = Image::new(Box::new([0; IMAGE_LEN]));
        let _ = image.restore(&layout, requested & 0xe7, 0xe7, only, &area.0);
    }
}

/// XSAVE and XSAVEC of `requested` with the state of `loaded`.
fn native_save(
    requested: u64,
    loaded: &Area,
    mask: u64,
    standard: &mut Area,
    compacted: &mut Area,
) {
    let mut own = Area::new();
    // SAFETY: as in `on_processor`; masks are below 2^32.
    unsafe {
        asm!(
            "xor edx, edx", "mov rax, {mask}", "xsave64 [{own}]", "xrstor64 [{loaded}]",
            "mov rax, {requested}", "xsave64 [{standard}]", "xsavec64 [{compacted}]",
            "mov rax, {mask}", "xrstor64 [{own}]",
            own = in(reg) &raw mut *own, loaded = in(reg) loaded,
            standard = in(reg) standard, compacted = in(reg) compacted,
            mask = in(reg) mask, requested = in(reg) requested,
            out("rax") _, out("rdx") _,
        );
    }
}

/// Loads `first` whole, then `requested` of `second`; stores all to `result`.
fn native_restore(mask: u64, first: &Area, second: &Area, requested: u64, result: &mut Area) {
    let mut own = Area::new();
    // SAFETY: as in `on_processor`; masks are below 2^32.
    unsafe {
        asm!(
            "xor edx, edx", "mov rax, {mask}", "xsave64 [{own}]", "xrstor64 [{first}]",
            "mov rax, {requested}", "xrstor64 [{second}]",
            "mov rax, {mask}", "xsave64 [{result}]", "xrstor64 [{own}]",
            own = in(reg) &raw mut *own, first = in(reg) first, second = in(reg) second,
            result = in(reg) result, mask = in(reg) mask, requested = in(reg) requested,
            out("rax") _, out("rdx") _,
        );
    }
}

#[test]
fn areas_that_break_the_rules_are_refused() {
    let layout = Layout::of_host();
    let refused = |change: &dyn Fn(&mut [u8; AREA]), only| {
        let mut area = area(&layout, 3, 1, MXCSR_INIT);
        change(&mut area.0);
        let mut image = Image::new(Box::new([0; IMAGE_LEN]));
        !image.restore(&layout, 7, 7, only, &area.0)
    };
    assert!(!refused(&|_| {}, false));
    assert!(refused(&|_| {}, true), "XRSTORS takes compacted areas only");
    assert!(refused(&|a| a[HEADER_AT] = 0xff, false), "not enabled");
    assert!(refused(&|a| a[XCOMP_AT] = 1, false), "half compacted");
    assert!(refused(&|a| a[XCOMP_AT + 8] = 1, false), "reserved");
    assert!(
        refused(&|a| a[MXCSR_AT + 3] = 1, false),
        "reserved in MXCSR"
    );
    let compact = |a: &mut [u8; AREA], present: u8| {
        a[XCOMP_AT] = present;
        a[XCOMP_AT + 7] = 0x80;
    };
    assert!(!refused(&|a| compact(a, 7), true));
    assert!(refused(&|a| compact(a, 1), true), "in use but not present");
    assert!(
        refused(&|a| compact(a, 0xe7), true),
        "present but not enabled"
    );
}

#[test]
fn integers_become_what_the_processor_makes_of_them() {
    for value in [0, 1, -1, 3, 1000, -12345, i64::MAX, i64::MIN, 1 << 62] {
        let mut native = [0u8; 10];
        // SAFETY: pushes one value and pops it into ten bytes.
        unsafe {
            asm!("fild qword ptr [{from}]", "fstp tbyte ptr [{to}]",
                from = in(reg) &raw const value, to = in(reg) &raw mut native,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
        }
        assert_eq!(extended_float(value), native, "{value}");
    }
}

#[test]
fn pushing_onto_a_full_stack_faults_or_loads_nan() {
    let mut image = Image::new(Box::new([0; IMAGE_LEN]));
    image.put(0, &FCW_INIT.to_le_bytes());
    for value in 1..=8 {
        image.push_integer(value);
    }
    assert_eq!(image.bytes[4], 0xff);
    assert_eq!(image.u16_at(2), 0);
    assert_eq!(image.bytes[ST_AT..ST_AT + 10], extended_float(8));
    assert_eq!(image.bytes[ST_AT + 112..ST_AT + 122], extended_float(1));
    image.push_integer(9);
    assert_eq!(image.u16_at(2) & 0x241, 0x241);
    assert_eq!(image.bytes[ST_AT + 9], 0xff);
    image.put(0, &[0]);
    image.push_integer(9);
    assert!(image.x87_exception_pending());
    image.clear_x87_exceptions();
    assert!(!image.x87_exception_pending());
    image.empty_x87();
    assert_eq!(image.bytes[4], 0);
}
