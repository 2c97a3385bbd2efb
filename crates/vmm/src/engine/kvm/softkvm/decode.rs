//! Finds out which instruction KVM's emulator stopped at.

use iced_x86::{Decoder, DecoderOptions, Instruction, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::page_walk::{Access, View, WalkError};

/// Longest x86 instruction.
const MAX_LEN: usize = 15;

/// Decodes the instruction at RIP. `prefetched` are the bytes that KVM reports,
/// perhaps not all; memory is read where they do not suffice.
pub(super) fn at_rip(
    view: &View<'_>,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
    prefetched: &[u8],
) -> Result<Instruction, WalkError> {
    let bitness = match (sregs.cs.l, sregs.cs.db) {
        (1, _) => 64,
        (_, 1) => 32,
        _ => 16,
    };
    let instruction = decode(bitness, regs.rip, prefetched);
    if !instruction.is_invalid() {
        return Ok(instruction);
    }
    Ok(decode(bitness, regs.rip, &fetch(view, regs.rip)?))
}

/// Decodes bytes; an invalid instruction if they are none.
pub(super) fn decode(bitness: u32, rip: u64, bytes: &[u8]) -> Instruction {
    let bytes = &bytes[..bytes.len().min(MAX_LEN)];
    Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE).decode()
}

/// Reads the bytes at `rip`: all that can be had up to [`MAX_LEN`].
pub(super) fn fetch(view: &View<'_>, rip: u64) -> Result<Vec<u8>, WalkError> {
    let mut bytes = vec![0; MAX_LEN];
    if view.read(rip, &mut bytes, Access::Fetch).is_ok() {
        return Ok(bytes);
    }
    // The next page may be missing without the instruction reaching into it.
    let in_page = usize::try_from(4096 - rip % 4096).unwrap_or(MAX_LEN);
    bytes.truncate(in_page.min(MAX_LEN));
    view.read(rip, &mut bytes, Access::Fetch)?;
    Ok(bytes)
}

/// The 64-bit general register of number `index` in instruction encodings.
pub(super) fn general(regs: &mut kvm_regs, index: usize) -> Option<&mut u64> {
    Some(match index {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        15 => &mut regs.r15,
        _ => return None,
    })
}

/// Value of a register as part of an address, or as an operand.
pub(super) fn register_value(
    regs: &mut kvm_regs,
    sregs: &kvm_sregs,
    register: Register,
) -> Option<u64> {
    match register {
        Register::FS => return Some(sregs.fs.base),
        Register::GS => return Some(sregs.gs.base),
        // Flat in 64-bit mode.
        Register::CS | Register::DS | Register::ES | Register::SS => return Some(0),
        _ => {}
    }
    if !register.is_gpr() {
        return None;
    }
    if matches!(
        register,
        Register::AH | Register::BH | Register::CH | Register::DH
    ) {
        let full = *general(regs, register.full_register().number())?;
        return Some(full >> 8 & 0xff);
    }
    let full = *general(regs, register.full_register().number())?;
    Some(match register.size() {
        1 => full & 0xff,
        2 => full & 0xffff,
        4 => full & 0xffff_ffff,
        _ => full,
    })
}

/// Writes a 16-, 32- or 64-bit register: 32 bits clear the upper half.
pub(super) fn set_register(regs: &mut kvm_regs, register: Register, value: u64) -> Option<()> {
    if !register.is_gpr() {
        return None;
    }
    let full = general(regs, register.full_register().number())?;
    *full = match register.size() {
        2 => *full & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        8 => value,
        _ => return None,
    };
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..20),
            rip in any::<u64>(),
            bitness in prop_oneof![Just(16), Just(32), Just(64)],
        ) {
            let instruction = decode(bitness, rip, &bytes);
            prop_assert!(instruction.len() <= MAX_LEN);
        }
    }

    #[test]
    fn registers_are_numbered_as_instructions_do() {
        let mut regs = kvm_regs {
            rcx: 0x1122_3344_5566_7788,
            r13: 13,
            ..Default::default()
        };
        let sregs = kvm_sregs::default();
        for (register, value) in [
            (Register::RCX, 0x1122_3344_5566_7788),
            (Register::ECX, 0x5566_7788),
            (Register::CX, 0x7788),
            (Register::CL, 0x88),
            (Register::CH, 0x77),
            (Register::R13, 13),
        ] {
            assert_eq!(
                register_value(&mut regs, &sregs, register),
                Some(value),
                "{register:?}"
            );
        }
        assert_eq!(register_value(&mut regs, &sregs, Register::XMM0), None);
    }

    #[test]
    fn narrow_writes_keep_or_clear_the_rest() {
        let mut regs = kvm_regs {
            rax: u64::MAX,
            ..Default::default()
        };
        set_register(&mut regs, Register::AX, 1).unwrap();
        assert_eq!(regs.rax, 0xffff_ffff_ffff_0001);
        set_register(&mut regs, Register::EAX, 2).unwrap();
        assert_eq!(regs.rax, 2);
        assert_eq!(set_register(&mut regs, Register::AL, 2), None);
    }
}
