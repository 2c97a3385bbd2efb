//! Completed instructions against this processor's, and their exceptions.

use super::super::super::memory::allocate;
use super::super::decode::decode;
use super::super::fpu::{IMAGE_LEN, MXCSR_INIT};
use super::super::page_walk::Paging;
use super::*;
use kvm_bindings::kvm_segment;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RIP: u64 = 0xffff_8000;
/// First address of a mapped page, read-only one, unmapped one.
const DATA: u64 = 0x20_0000;
const READ_ONLY: u64 = 0x20_1000;
const MISSING: u64 = 0x20_2000;
const FRAME: u64 = 0x8000;

/// Keeps one image, as KVM would.
struct Kept {
    image: Image,
    stores: usize,
}

impl ExtendedState for Kept {
    fn load(&mut self) -> Result<Image, kvm_ioctls::Error> {
        Ok(self.image.clone())
    }

    fn store(&mut self, image: &Image) -> Result<(), kvm_ioctls::Error> {
        self.image = image.clone();
        self.stores += 1;
        Ok(())
    }

    fn enabled(&mut self) -> Result<u64, kvm_ioctls::Error> {
        Ok(7)
    }
}

/// A vCPU in ring 0 with three pages.
struct Bench {
    memory: GuestMemoryMmap,
    regs: kvm_regs,
    sregs: kvm_sregs,
    extended: Kept,
}

impl Bench {
    fn new() -> Self {
        let memory = allocate(1).unwrap();
        for (at, entry) in [
            (0x1000, 0x2003u64),
            (0x2000, 0x3003),
            (0x3008, 0x4003),
            (0x4000, FRAME | 3),
            (0x4008, FRAME | 0x1001),
        ] {
            memory.write_obj(entry, GuestAddress(at)).unwrap();
        }
        let mut image = Image::new(Box::new([0; IMAGE_LEN]));
        image.put(0, &0x37fu16.to_le_bytes());
        assert!(image.set_mxcsr(MXCSR_INIT));
        Self {
            memory,
            regs: kvm_regs {
                rip: RIP,
                rflags: 2,
                ..Default::default()
            },
            sregs: kvm_sregs {
                cr0: 1 << 31 | 1 << 16 | CR0_MP,
                cr3: 0x1000,
                cr4: CR4_OSXSAVE,
                efer: 1 << 10,
                cs: kvm_segment {
                    selector: 0x10,
                    l: 1,
                    ..Default::default()
                },
                ..Default::default()
            },
            extended: Kept { image, stores: 0 },
        }
    }

    fn run(&mut self, bytes: &[u8]) -> Result<Outcome, CompleteError> {
        let instruction = decode(64, self.regs.rip, bytes);
        let view = View::new(&self.memory, Paging::of(&self.sregs, self.regs.rflags));
        Cpu {
            regs: &mut self.regs,
            sregs: &self.sregs,
            view,
            extended: &mut self.extended,
            layout: &Layout::of_host(),
        }
        .complete(&instruction)
    }

    /// Runs an instruction that must succeed.
    fn done(&mut self, bytes: &[u8]) {
        assert_eq!(self.run(bytes).unwrap(), Outcome::Done);
        assert_eq!(self.regs.rip, RIP + bytes.len() as u64);
    }

    /// Runs an instruction that must raise; (vector, error code, address).
    fn raised(&mut self, bytes: &[u8]) -> (u8, Option<u32>, Option<u64>) {
        match self.run(bytes).unwrap() {
            Outcome::Raise(exception) => {
                (exception.vector, exception.error_code, exception.address)
            }
            Outcome::Done => panic!("completed"),
        }
    }
}

#[test]
fn popcnt_counts_as_the_processor_does() {
    for value in [0u64, 1, 0xff00, u64::MAX, 0x8000_0000_0000_0001] {
        let mut bench = Bench::new();
        bench.regs.rbx = value;
        bench.regs.rflags = 2 | RFLAGS_STATUS;
        bench.done(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3]); // popcnt rax, rbx
        assert_eq!(bench.regs.rax, u64::from(value.count_ones()));
        let zero = if value == 0 { RFLAGS_ZF } else { 0 };
        assert_eq!(bench.regs.rflags, 2 | zero);
    }
}

#[test]
fn popcnt_of_memory_and_of_narrow_registers() {
    let mut bench = Bench::new();
    bench
        .memory
        .write_obj(0x0f0fu32, GuestAddress(FRAME + 16))
        .unwrap();
    bench.regs.rsi = DATA;
    bench.regs.rax = u64::MAX;
    bench.done(&[0xf3, 0x0f, 0xb8, 0x46, 0x10]); // popcnt eax, [rsi + 16]
    assert_eq!(bench.regs.rax, 8);
    bench.regs.rip = RIP;
    bench.regs.rbx = 0xffff_0003;
    bench.regs.rax = u64::MAX;
    bench.done(&[0x66, 0xf3, 0x0f, 0xb8, 0xc3]); // popcnt ax, bx
    assert_eq!(bench.regs.rax, 0xffff_ffff_ffff_0002);
}

#[cfg(target_feature = "sse2")]
mod crc {
    //! CRC32 on the processor.
    #![expect(unsafe_code)]
    // UNSAFETY: the instruction is run for comparison.
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};

    /// Results for 1, 4 and 8 bytes; `None` without the instruction.
    pub(super) fn native(seed: u32, value: u64) -> Option<[u64; 3]> {
        if !std::arch::is_x86_feature_detected!("sse4.2") {
            return None;
        }
        let [byte, ..] = value.to_le_bytes();
        let [a, b, c, d, ..] = value.to_le_bytes();
        let word = u32::from_le_bytes([a, b, c, d]);
        // SAFETY: the processor has the instruction.
        Some(unsafe {
            [
                _mm_crc32_u8(seed, byte).into(),
                _mm_crc32_u32(seed, word).into(),
                _mm_crc32_u64(seed.into(), value),
            ]
        })
    }
}

proptest! {
    #[test]
    fn crc32_is_the_processors(seed in any::<u32>(), value in any::<u64>()) {
        let Some(native) = crc::native(seed, value) else {
            return Ok(());
        };
        let forms: [&[u8]; 3] = [
            &[0xf2, 0x0f, 0x38, 0xf0, 0xc3],       // crc32 eax, bl
            &[0xf2, 0x0f, 0x38, 0xf1, 0xc3],       // crc32 eax, ebx
            &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc3], // crc32 rax, rbx
        ];
        for (form, native) in forms.into_iter().zip(native) {
            let mut bench = Bench::new();
            bench.regs.rax = 0xffff_ffff_0000_0000 | u64::from(seed);
            bench.regs.rbx = value;
            bench.done(form);
            prop_assert_eq!(bench.regs.rax, native);
        }
    }

    #[test]
    fn random_bytes_are_completed_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 1..16),
        rax in any::<u64>(), rsi in any::<u64>(), user in any::<bool>(),
    ) {
        let mut bench = Bench::new();
        (bench.regs.rax, bench.regs.rsi, bench.regs.rdi) = (rax, rsi, DATA);
        if user {
            bench.sregs.cs.selector = 0x33;
        }
        let _ = bench.run(&bytes);
    }

    #[test]
    fn random_operands_of_known_instructions_never_panic(
        opcode in prop_oneof![
            Just(vec![0x0f, 0xae]), Just(vec![0x48, 0x0f, 0xae]), Just(vec![0x0f, 0xc7]),
            Just(vec![0x48, 0x0f, 0xc7]), Just(vec![0xdb]), Just(vec![0xdf]),
            Just(vec![0xf2, 0x0f, 0x38, 0xf1]), Just(vec![0xf3, 0x0f, 0xb8]),
        ],
        rest in proptest::collection::vec(any::<u8>(), 6..8),
        rdi in prop_oneof![Just(DATA), Just(READ_ONLY), Just(MISSING), any::<u64>()],
    ) {
        let mut bench = Bench::new();
        bench.regs.rdi = rdi;
        bench.regs.rax = 7;
        let _ = bench.run(&[opcode, rest].concat());
    }
}

#[test]
fn traps_and_faults_leave_rip_where_they_want_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.raised(&[0xcc]), (BP, None, None));
    assert_eq!(bench.regs.rip, RIP + 1);
    let mut bench = Bench::new();
    assert_eq!(bench.raised(&[0x0f, 0x0b]), (UD, None, None));
    assert_eq!(bench.regs.rip, RIP);
}

#[test]
fn ring_3_gets_invalid_opcode_whatever_it_ran() {
    let mut bench = Bench::new();
    bench.sregs.cs.selector = 0x33;
    assert_eq!(
        bench.raised(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3]),
        (UD, None, None)
    );
    assert_eq!(bench.regs.rip, RIP);
}

#[test]
fn stac_and_clac_switch_the_flag() {
    let mut bench = Bench::new();
    bench.done(&[0x0f, 0x01, 0xcb]);
    assert_eq!(bench.regs.rflags, 2 | RFLAGS_AC);
    bench.regs.rip = RIP;
    bench.done(&[0x0f, 0x01, 0xca]);
    assert_eq!(bench.regs.rflags, 2);
}

#[test]
fn cmpxchg16b_exchanges_or_loads() {
    const CODE: [u8; 4] = [0x48, 0x0f, 0xc7, 0x0f]; // cmpxchg16b [rdi]
    let mut bench = Bench::new();
    let at = GuestAddress(FRAME + 32);
    bench.memory.write_obj(5u128 << 64 | 4, at).unwrap();
    bench.regs.rdi = DATA + 32;
    (bench.regs.rax, bench.regs.rdx) = (1, 2);
    (bench.regs.rbx, bench.regs.rcx) = (8, 9);
    bench.done(&CODE);
    assert_eq!((bench.regs.rax, bench.regs.rdx), (4, 5));
    assert_eq!(bench.regs.rflags & RFLAGS_ZF, 0);
    bench.regs.rip = RIP;
    bench.done(&CODE);
    assert_eq!(bench.regs.rflags & RFLAGS_ZF, RFLAGS_ZF);
    let stored: u128 = bench.memory.read_obj(at).unwrap();
    assert_eq!(stored, 9u128 << 64 | 8);
    bench.regs.rip = RIP;
    bench.regs.rdi += 8;
    assert_eq!(bench.raised(&CODE), (GP, Some(0), None));
}

#[test]
fn xsave_and_xrstor_bring_registers_back() {
    let mut bench = Bench::new();
    bench.extended.image.put(160, &[0xab; 16]);
    bench.extended.image.use_components(super::super::fpu::SSE);
    (bench.regs.rax, bench.regs.rdi) = (7, DATA + 64);
    bench.done(&[0x48, 0x0f, 0xae, 0x27]); // xsave64 [rdi]
    let saved: u128 = bench
        .memory
        .read_obj(GuestAddress(FRAME + 64 + 160))
        .unwrap();
    assert_eq!(saved, u128::from_le_bytes([0xab; 16]));
    bench.extended.image.put(160, &[0; 16]);
    bench.regs.rip = RIP;
    bench.done(&[0x48, 0x0f, 0xae, 0x2f]); // xrstor64 [rdi]
    assert_eq!(bench.extended.image.bytes()[160..176], [0xab; 16]);
    assert_eq!(bench.extended.stores, 1);
}

#[test]
fn xsave_raises_what_the_processor_would() {
    const CODE: [u8; 4] = [0x48, 0x0f, 0xae, 0x27];
    let raise = |rdi: u64, change: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new();
        (bench.regs.rax, bench.regs.rdi) = (7, rdi);
        change(&mut bench);
        let raised = bench.raised(&CODE);
        assert_eq!(bench.regs.rip, RIP);
        raised
    };
    assert_eq!(raise(DATA + 1, &|_| {}), (GP, Some(0), None));
    assert_eq!(raise(1 << 47, &|_| {}), (GP, Some(0), None));
    assert_eq!(raise(DATA, &|b| b.sregs.cr4 = 0), (UD, None, None));
    assert_eq!(raise(DATA, &|b| b.sregs.cr0 |= CR0_TS), (NM, None, None));
    // Copy on write: a present page that may not be written.
    let (vector, code, address) = raise(READ_ONLY, &|_| {});
    assert_eq!((vector, code), (PF, Some(3)));
    assert!((READ_ONLY..MISSING).contains(&address.unwrap()));
    let (vector, code, address) = raise(MISSING, &|_| {});
    assert_eq!((vector, code), (PF, Some(2)));
    assert_eq!(address.unwrap() & !0xfff, MISSING);
}

#[test]
fn ldmxcsr_refuses_reserved_bits() {
    const CODE: [u8; 3] = [0x0f, 0xae, 0x17]; // ldmxcsr [rdi]
    let mut bench = Bench::new();
    bench.regs.rdi = DATA;
    bench
        .memory
        .write_obj(0x1fa0u32, GuestAddress(FRAME))
        .unwrap();
    bench.done(&CODE);
    assert_eq!(bench.extended.image.mxcsr(), 0x1fa0);
    bench.regs.rip = RIP;
    bench
        .memory
        .write_obj(u32::MAX, GuestAddress(FRAME))
        .unwrap();
    assert_eq!(bench.raised(&CODE), (GP, Some(0), None));
    assert_eq!(bench.extended.image.mxcsr(), 0x1fa0);
}

#[test]
fn x87_instructions_change_the_x87_state() {
    let mut bench = Bench::new();
    bench.memory.write_obj(-3i32, GuestAddress(FRAME)).unwrap();
    bench.regs.rdi = DATA;
    bench.done(&[0xdb, 0x07]); // fild dword ptr [rdi]
    assert_eq!(bench.extended.image.bytes()[40..42], [0, 0xc0]);
    assert_eq!(bench.extended.image.bytes()[4], 0x80);
    bench.regs.rip = RIP;
    bench.done(&[0x0f, 0x77]); // emms
    assert_eq!(bench.extended.image.bytes()[4], 0);
    bench.extended.image.put(2, &0x80ffu16.to_le_bytes());
    bench.regs.rip = RIP;
    assert_eq!(bench.raised(&[0x9b]), (MF, None, None)); // fwait
    bench.done(&[0xdb, 0xe2]); // fnclex
    bench.regs.rip = RIP;
    bench.done(&[0x9b]);
    bench.regs.rip = RIP;
    bench.sregs.cr0 |= CR0_TS;
    assert_eq!(bench.raised(&[0x9b]), (NM, None, None));
    assert_eq!(bench.raised(&[0xdb, 0xe2]), (NM, None, None));
}

#[test]
fn xgetbv_reads_the_enabled_components() {
    let mut bench = Bench::new();
    (bench.regs.rax, bench.regs.rdx) = (u64::MAX, u64::MAX);
    bench.done(&[0x0f, 0x01, 0xd0]);
    assert_eq!((bench.regs.rax, bench.regs.rdx), (7, 0));
    bench.regs.rip = RIP;
    bench.regs.rcx = 5;
    assert_eq!(bench.raised(&[0x0f, 0x01, 0xd0]), (GP, Some(0), None));
}

#[test]
fn what_is_not_listed_is_an_error() {
    let mut bench = Bench::new();
    let error = bench.run(&[0xc5, 0xfa, 0x6f, 0x07]).unwrap_err(); // vmovdqu xmm0, [rdi]
    assert!(error.to_string().contains("Vmovdqu"), "{error}");
    assert_eq!(bench.regs.rip, RIP);
}

#[test]
fn regression_areas_across_the_end_of_the_address_space_fault() {
    // XSAVE and XRSTOR of [rcx-64], rcx being 0.
    for bytes in [[0x0f, 0xae, 0x61, 0xc0], [0x0f, 0xae, 0x69, 0xc0]] {
        let mut bench = Bench::new();
        bench.regs.rax = 7;
        assert_eq!(bench.raised(&bytes).0, PF);
        assert_eq!(bench.regs.rip, RIP);
    }
}
