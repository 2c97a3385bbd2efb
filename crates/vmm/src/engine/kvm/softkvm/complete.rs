//! Does in user space what KVM's instruction emulator leaves undone: a handful
//! of instructions that Linux kernels contain.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::decode::{register_value, set_register};
use super::fpu::{Image, Layout, SaveFormat};
use super::page_walk::{Access, View, WalkError};
use super::wide_exchange;

/// Exception vectors.
const UD: u8 = 6;
const BP: u8 = 3;
const NM: u8 = 7;
const GP: u8 = 13;
const PF: u8 = 14;
const MF: u8 = 16;

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSXSAVE: u64 = 1 << 18;

const RFLAGS_AC: u64 = 1 << 18;
const RFLAGS_ZF: u64 = 1 << 6;
/// CF, PF, AF, ZF, SF, OF.
const RFLAGS_STATUS: u64 = 0x8d5;

/// Legacy region and header of an XSAVE area.
const XSAVE_HEADER_END: usize = 576;

/// An exception for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) vector: u8,
    pub(super) error_code: Option<u32>,
    /// For page faults: CR2.
    pub(super) address: Option<u64>,
}

impl Exception {
    const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            address: None,
        }
    }

    /// Invalid opcode.
    pub(super) const INVALID_OPCODE: Self = Self::plain(UD);
    /// General protection, error code 0.
    const GENERAL_PROTECTION: Self = Self {
        vector: GP,
        error_code: Some(0),
        address: None,
    };
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done; RIP stands behind it.
    Done,
    /// The guest gets this; RIP stands where the exception wants it.
    Raise(Exception),
}

/// Why an instruction was not completed.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum CompleteError {
    /// None of those that this module knows.
    #[error("instruction {mnemonic:?} is not among those completed in user space")]
    Unknown {
        /// What it is.
        mnemonic: Mnemonic,
    },
    /// Operands that no such instruction has.
    #[error("operands of {mnemonic:?} are not understood")]
    Operands {
        /// What it is.
        mnemonic: Mnemonic,
    },
    /// Guest memory.
    #[error("an operand cannot be reached")]
    Walk(#[source] WalkError),
    /// A KVM call failed.
    #[error("KVM's extended state cannot be accessed")]
    Kvm(#[from] kvm_ioctls::Error),
}

/// Either an exception for the guest, or an error.
enum Stop {
    Raise(Exception),
    Fail(CompleteError),
}

impl From<WalkError> for Stop {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::PageFault {
                address,
                error_code,
            } => Self::Raise(Exception {
                vector: PF,
                error_code: Some(error_code),
                address: Some(address),
            }),
            WalkError::NotCanonical(_) => Self::Raise(Exception::GENERAL_PROTECTION),
            error => Self::Fail(CompleteError::Walk(error)),
        }
    }
}

impl From<CompleteError> for Stop {
    fn from(error: CompleteError) -> Self {
        Self::Fail(error)
    }
}

impl From<kvm_ioctls::Error> for Stop {
    fn from(error: kvm_ioctls::Error) -> Self {
        Self::Fail(error.into())
    }
}

/// A vCPU's extended state, fetched and stored on demand.
pub(super) trait ExtendedState {
    /// The state in standard format.
    fn load(&mut self) -> Result<Image, kvm_ioctls::Error>;
    /// Replaces the state.
    fn store(&mut self, image: &Image) -> Result<(), kvm_ioctls::Error>;
    /// XCR0.
    fn enabled(&mut self) -> Result<u64, kvm_ioctls::Error>;
}

/// What a completion works on.
pub(super) struct Cpu<'a> {
    pub(super) regs: &'a mut kvm_regs,
    pub(super) sregs: &'a kvm_sregs,
    pub(super) view: View<'a>,
    pub(super) extended: &'a mut dyn ExtendedState,
    pub(super) layout: &'a Layout,
}

impl Cpu<'_> {
    /// Completes `instruction`, which lies at RIP.
    pub(super) fn complete(&mut self, instruction: &Instruction) -> Result<Outcome, CompleteError> {
        let user = self.sregs.cs.selector & 3 == 3;
        if user || instruction.mnemonic() == Mnemonic::Ud2 {
            return Ok(Outcome::Raise(Exception::INVALID_OPCODE));
        }
        match self.dispatch(instruction) {
            Ok(()) => {
                self.regs.rip = instruction.next_ip();
                Ok(Outcome::Done)
            }
            Err(Stop::Raise(exception)) => {
                if exception.vector == BP {
                    // A trap: RIP is behind the instruction.
                    self.regs.rip = instruction.next_ip();
                }
                Ok(Outcome::Raise(exception))
            }
            Err(Stop::Fail(error)) => Err(error),
        }
    }

    fn dispatch(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        match instruction.mnemonic() {
            Mnemonic::Int3 => Err(Stop::Raise(Exception::plain(BP))),
            Mnemonic::Popcnt => self.popcnt(instruction),
            Mnemonic::Crc32 => self.crc32(instruction),
            Mnemonic::Clac => self.set_alignment_check(false),
            Mnemonic::Stac => self.set_alignment_check(true),
            Mnemonic::Cmpxchg16b => self.cmpxchg16b(instruction),
            Mnemonic::Wait => self.fwait(),
            Mnemonic::Fnclex => self.x87(|image| image.clear_x87_exceptions(), false),
            Mnemonic::Emms => self.x87(|image| image.empty_x87(), true),
            Mnemonic::Fild => self.fild(instruction),
            Mnemonic::Ldmxcsr => self.ldmxcsr(instruction),
            Mnemonic::Stmxcsr => self.stmxcsr(instruction),
            Mnemonic::Xgetbv => self.xgetbv(instruction),
            Mnemonic::Xsave | Mnemonic::Xsave64 => self.xsave(instruction, SaveFormat::Standard),
            Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => {
                self.xsave(instruction, SaveFormat::Optimized)
            }
            Mnemonic::Xsavec | Mnemonic::Xsavec64 | Mnemonic::Xsaves | Mnemonic::Xsaves64 => {
                self.xsave(instruction, SaveFormat::Compacted)
            }
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => self.xrstor(instruction, false),
            Mnemonic::Xrstors | Mnemonic::Xrstors64 => self.xrstor(instruction, true),
            mnemonic => Err(CompleteError::Unknown { mnemonic }.into()),
        }
    }

    /// Address of memory operand `operand`.
    fn address(&mut self, instruction: &Instruction, operand: u32) -> Result<u64, Stop> {
        let (regs, sregs) = (&mut *self.regs, self.sregs);
        instruction
            .virtual_address(operand, 0, |register, _, _| {
                register_value(regs, sregs, register)
            })
            .ok_or_else(|| operands(instruction))
    }

    /// Value of a general register or of memory, up to 8 bytes.
    fn operand(&mut self, instruction: &Instruction, operand: u32) -> Result<u64, Stop> {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                register_value(self.regs, self.sregs, register).ok_or_else(|| operands(instruction))
            }
            OpKind::Memory => {
                let address = self.address(instruction, operand)?;
                let length = instruction.memory_size().size();
                let mut bytes = [0; 8];
                let bytes_read = bytes
                    .get_mut(..length)
                    .ok_or_else(|| operands(instruction))?;
                self.view.read(address, bytes_read, Access::Read)?;
                Ok(u64::from_le_bytes(bytes))
            }
            _ => Err(operands(instruction)),
        }
    }

    fn set_operand0(&mut self, instruction: &Instruction, value: u64) -> Result<(), Stop> {
        set_register(self.regs, instruction.op0_register(), value)
            .ok_or_else(|| operands(instruction))
    }

    fn popcnt(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let source = self.operand(instruction, 1)?;
        self.set_operand0(instruction, source.count_ones().into())?;
        self.regs.rflags &= !RFLAGS_STATUS;
        if source == 0 {
            self.regs.rflags |= RFLAGS_ZF;
        }
        Ok(())
    }

    /// CRC-32C (Castagnoli) of the source's bytes, going on from operand 0.
    fn crc32(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        const POLYNOMIAL: u32 = 0x82f6_3b78;
        let length = match instruction.op1_kind() {
            OpKind::Register => instruction.op1_register().size(),
            _ => instruction.memory_size().size(),
        };
        let source = self.operand(instruction, 1)?;
        let [a, b, c, d, ..] = self.operand(instruction, 0)?.to_le_bytes();
        let mut crc = u32::from_le_bytes([a, b, c, d]);
        for byte in source.to_le_bytes().into_iter().take(length) {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            }
        }
        self.set_operand0(instruction, crc.into())
    }

    fn set_alignment_check(&mut self, on: bool) -> Result<(), Stop> {
        self.regs.rflags &= !RFLAGS_AC;
        if on {
            self.regs.rflags |= RFLAGS_AC;
        }
        Ok(())
    }

    fn cmpxchg16b(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let address = self.address(instruction, 0)?;
        if !address.is_multiple_of(16) {
            return Err(Stop::Raise(Exception::GENERAL_PROTECTION));
        }
        let physical = self.view.translate(address, Access::Write)?;
        let wide = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
        let expected = wide(self.regs.rax, self.regs.rdx);
        let new = wide(self.regs.rbx, self.regs.rcx);
        let found = wide_exchange::compare_exchange(self.view.memory(), physical, expected, new)
            .ok_or(WalkError::NoMemory(physical))?;
        if found == expected {
            self.regs.rflags |= RFLAGS_ZF;
        } else {
            self.regs.rflags &= !RFLAGS_ZF;
            [self.regs.rax, self.regs.rdx] = wide_exchange::halves(found);
        }
        Ok(())
    }

    fn fwait(&mut self) -> Result<(), Stop> {
        if self.sregs.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
            return Err(Stop::Raise(Exception::plain(NM)));
        }
        if self.extended.load()?.x87_exception_pending() {
            return Err(Stop::Raise(Exception::plain(MF)));
        }
        Ok(())
    }

    /// #NM if the FPU is switched off.
    fn require_fpu(&self) -> Result<(), Stop> {
        if self.sregs.cr0 & (CR0_EM | CR0_TS) != 0 {
            return Err(Stop::Raise(Exception::plain(NM)));
        }
        Ok(())
    }

    fn x87(&mut self, change: impl FnOnce(&mut Image), checks: bool) -> Result<(), Stop> {
        self.require_fpu()?;
        let mut image = self.extended.load()?;
        if checks && image.x87_exception_pending() {
            return Err(Stop::Raise(Exception::plain(MF)));
        }
        change(&mut image);
        Ok(self.extended.store(&image)?)
    }

    fn fild(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let bits = u32::try_from(instruction.memory_size().size() * 8).unwrap_or(64);
        self.require_fpu()?;
        let raw = self.operand(instruction, instruction.op_count() - 1)?;
        let unused = 64 - bits;
        let value = (raw << unused).cast_signed() >> unused;
        self.x87(|image| image.push_integer(value), true)
    }

    fn ldmxcsr(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        self.require_fpu()?;
        let [a, b, c, d, ..] = self.operand(instruction, 0)?.to_le_bytes();
        let mut image = self.extended.load()?;
        if !image.set_mxcsr(u32::from_le_bytes([a, b, c, d])) {
            return Err(Stop::Raise(Exception::GENERAL_PROTECTION));
        }
        image.use_components(super::fpu::SSE);
        Ok(self.extended.store(&image)?)
    }

    fn stmxcsr(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        self.require_fpu()?;
        let address = self.address(instruction, 0)?;
        let value = self.extended.load()?.mxcsr();
        Ok(self.view.write(address, &value.to_le_bytes())?)
    }

    fn xgetbv(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        self.require_xsave()?;
        let [index, ..] = self.regs.rcx.to_le_bytes();
        let value = match index {
            0 => self.extended.enabled()?,
            1 => self.extended.enabled()? & self.extended.load()?.in_use(),
            _ => return Err(Stop::Raise(Exception::GENERAL_PROTECTION)),
        };
        set_register(self.regs, Register::EAX, value).ok_or_else(|| operands(instruction))?;
        set_register(self.regs, Register::EDX, value >> 32).ok_or_else(|| operands(instruction))
    }

    /// #UD if the guest has not switched XSAVE on.
    fn require_xsave(&self) -> Result<(), Stop> {
        if self.sregs.cr4 & CR4_OSXSAVE == 0 {
            return Err(Stop::Raise(Exception::INVALID_OPCODE));
        }
        Ok(())
    }

    /// Address and requested components of an XSAVE instruction.
    fn area(&mut self, instruction: &Instruction) -> Result<(u64, u64), Stop> {
        self.require_xsave()?;
        if self.sregs.cr0 & CR0_TS != 0 {
            return Err(Stop::Raise(Exception::plain(NM)));
        }
        let address = self.address(instruction, 0)?;
        if !address.is_multiple_of(64) {
            return Err(Stop::Raise(Exception::GENERAL_PROTECTION));
        }
        let asked = self.regs.rdx << 32 | self.regs.rax & 0xffff_ffff;
        Ok((address, asked & self.extended.enabled()?))
    }

    fn xsave(&mut self, instruction: &Instruction, format: SaveFormat) -> Result<(), Stop> {
        let (address, requested) = self.area(instruction)?;
        let image = self.extended.load()?;
        let compacted = format == SaveFormat::Compacted;
        let mut area = vec![0; self.layout.area_len(requested, compacted)];
        if !compacted {
            // Bits of the header that are not asked for stay.
            let header = &mut area[512..520];
            self.view
                .read(address.wrapping_add(512), header, Access::Write)?;
        }
        for range in image.save(self.layout, requested, format, &mut area) {
            let at = address.wrapping_add(range.start as u64);
            self.view.write(at, &area[range])?;
        }
        Ok(())
    }

    fn xrstor(&mut self, instruction: &Instruction, compacted_only: bool) -> Result<(), Stop> {
        let (address, requested) = self.area(instruction)?;
        let enabled = self.extended.enabled()?;
        let mut area = vec![
            0;
            self.layout
                .area_len(u64::MAX >> 1, false)
                .max(XSAVE_HEADER_END)
        ];
        self.view
            .read(address, &mut area[..XSAVE_HEADER_END], Access::Read)?;
        let mut word = [0; 8];
        word.copy_from_slice(&area[520..528]);
        let present = u64::from_le_bytes(word) & !(1 << 63);
        let compacted = word[7] & 0x80 != 0;
        word.copy_from_slice(&area[512..520]);
        let loaded = requested & u64::from_le_bytes(word);
        let length = if compacted {
            self.layout.area_len(present & enabled, true)
        } else {
            self.layout.area_len(loaded, false)
        };
        if length > XSAVE_HEADER_END {
            let rest = &mut area[XSAVE_HEADER_END..length];
            self.view.read(
                address.wrapping_add(XSAVE_HEADER_END as u64),
                rest,
                Access::Read,
            )?;
        }
        let mut image = self.extended.load()?;
        if !image.restore(self.layout, requested, enabled, compacted_only, &area) {
            return Err(Stop::Raise(Exception::GENERAL_PROTECTION));
        }
        Ok(self.extended.store(&image)?)
    }
}

fn operands(instruction: &Instruction) -> Stop {
    Stop::Fail(CompleteError::Operands {
        mnemonic: instruction.mnemonic(),
    })
}

#[cfg(test)]
#[path = "complete_tests.rs"]
mod tests;
