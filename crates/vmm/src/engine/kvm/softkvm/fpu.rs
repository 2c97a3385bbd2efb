//! The extended processor state as XSAVE lays it out (Intel SDM volume 1, 13),
//! and how its instructions move it between registers and memory.

use std::arch::x86_64::__cpuid_count;

/// Bytes of the state that KVM_GET_XSAVE gives.
pub(super) const IMAGE_LEN: usize = 4096;
/// State components by number.
pub(super) const X87: u64 = 1;
pub(super) const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// Set in XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
const MXCSR_AT: usize = 24;
const MXCSR_MASK_AT: usize = 28;
pub(super) const MXCSR_INIT: u32 = 0x1f80;
const FCW_INIT: u16 = 0x37f;
const ST_AT: usize = 32;
const XMM_AT: usize = 160;
const XMM_END: usize = 416;
const HEADER_AT: usize = 512;
const XCOMP_AT: usize = 520;
const EXTENDED_AT: usize = 576;
/// MXCSR bits that may be set if the mask says nothing.
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;

/// Where a component lies in the standard format.
#[derive(Debug, Clone, Copy, Default)]
struct Component {
    at: usize,
    length: usize,
    /// Starts at a multiple of 64 in the compacted format.
    aligned: bool,
}

/// The processor's layout of components 2 to 62.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    components: [Component; 63],
}

impl Layout {
    /// As this processor has it: on a KVM without hardware virtualization the
    /// guest's user code sees the same.
    pub(super) fn of_host() -> Self {
        let mut components = [Component::default(); 63];
        for (number, component) in (0u32..).zip(&mut components).skip(2) {
            let leaf = __cpuid_count(0xd, number);
            let (at, length) = (leaf.ebx as usize, leaf.eax as usize);
            let fits = at.checked_add(length).is_some_and(|end| end <= IMAGE_LEN);
            if at >= EXTENDED_AT && fits {
                *component = Component {
                    at,
                    length,
                    aligned: leaf.ecx & 2 != 0,
                };
            }
        }
        Self { components }
    }

    /// Components 2 and up of `mask`, each with its place in the standard
    /// format and its start in an area compacted for `compacted_for`.
    fn extended(
        &self,
        mask: u64,
        compacted_for: Option<u64>,
    ) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
        let mut next = EXTENDED_AT;
        self.components
            .iter()
            .enumerate()
            .skip(2)
            .filter_map(move |(number, component)| {
                let bit = 1u64 << number;
                let mut start = component.at;
                if let Some(present) = compacted_for {
                    if present & bit == 0 {
                        return None;
                    }
                    if component.aligned {
                        next = next.next_multiple_of(64);
                    }
                    start = next;
                    next += component.length;
                }
                let standard = component.at..component.at + component.length;
                (mask & bit != 0 && component.length > 0).then_some((bit, standard, start))
            })
    }

    /// Bytes that an area holds with the components of `mask`.
    pub(super) fn area_len(&self, mask: u64, compacted: bool) -> usize {
        self.extended(mask, compacted.then_some(mask))
            .map(|(_, standard, start)| start + standard.len())
            .max()
            .unwrap_or(EXTENDED_AT)
            .max(EXTENDED_AT)
    }
}

/// How an instruction writes its area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaveFormat {
    /// XSAVE: everything at its standard place.
    Standard,
    /// XSAVEOPT: standard, without components in their initial state.
    Optimized,
    /// XSAVEC and XSAVES: compacted.
    Compacted,
}

/// The state of one vCPU in standard format.
#[derive(Clone)]
pub(super) struct Image {
    bytes: Box<[u8; IMAGE_LEN]>,
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

impl Image {
    /// From the bytes of KVM_GET_XSAVE.
    pub(super) fn new(bytes: Box<[u8; IMAGE_LEN]>) -> Self {
        Self { bytes }
    }

    /// For KVM_SET_XSAVE.
    pub(super) fn bytes(&self) -> &[u8; IMAGE_LEN] {
        &self.bytes
    }

    pub(super) fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes(get(&self.bytes[..], at))
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(get(&self.bytes[..], at))
    }

    pub(super) fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// XINUSE: components that are not in their initial state.
    pub(super) fn in_use(&self) -> u64 {
        u64::from_le_bytes(get(&self.bytes[..], HEADER_AT))
    }

    /// Marks components as in use.
    pub(super) fn use_components(&mut self, mask: u64) {
        let mask = self.in_use() | mask;
        self.put(HEADER_AT, &mask.to_le_bytes());
    }

    /// MXCSR.
    pub(super) fn mxcsr(&self) -> u32 {
        self.u32_at(MXCSR_AT)
    }

    /// Sets MXCSR; false if a bit is reserved (to be #GP).
    pub(super) fn set_mxcsr(&mut self, value: u32) -> bool {
        let allowed = match self.u32_at(MXCSR_MASK_AT) {
            0 => MXCSR_MASK_DEFAULT,
            mask => mask,
        };
        if value & !allowed != 0 {
            return false;
        }
        self.put(MXCSR_AT, &value.to_le_bytes());
        true
    }

    /// What an XSAVE instruction writes into `area`, which holds what is there
    /// now (at least [`Layout::area_len`] bytes). Returns the ranges to write.
    pub(super) fn save(
        &self,
        layout: &Layout,
        requested: u64,
        format: SaveFormat,
        area: &mut [u8],
    ) -> Vec<std::ops::Range<usize>> {
        let compacted = format == SaveFormat::Compacted;
        let mut in_use = self.in_use();
        if compacted && self.mxcsr() != MXCSR_INIT {
            in_use |= SSE;
        }
        let written = if format == SaveFormat::Standard {
            requested
        } else {
            requested & in_use
        };
        let mut ranges = Vec::new();
        if written & X87 != 0 {
            ranges.extend([0..MXCSR_AT, ST_AT..XMM_AT]);
        }
        let mxcsr = if compacted {
            written & SSE != 0
        } else {
            requested & (SSE | AVX) != 0
        };
        if mxcsr {
            ranges.push(MXCSR_AT..ST_AT);
        }
        if written & SSE != 0 {
            ranges.push(XMM_AT..XMM_END);
        }
        for range in &ranges {
            area[range.clone()].copy_from_slice(&self.bytes[range.clone()]);
        }
        let compacted_for = compacted.then_some(requested);
        for (_, standard, start) in layout.extended(written, compacted_for) {
            let target = start..start + standard.len();
            area[target.clone()].copy_from_slice(&self.bytes[standard]);
            ranges.push(target);
        }
        let old = u64::from_le_bytes(get(area, HEADER_AT));
        let header = if compacted {
            area[XCOMP_AT..XCOMP_AT + 8].copy_from_slice(&(requested | COMPACTED).to_le_bytes());
            ranges.push(XCOMP_AT..XCOMP_AT + 8);
            in_use & requested
        } else {
            old & !requested | in_use & requested
        };
        area[HEADER_AT..HEADER_AT + 8].copy_from_slice(&header.to_le_bytes());
        ranges.push(HEADER_AT..HEADER_AT + 8);
        ranges
    }

    /// What XRSTOR reads from `area`: false if the area is not valid (#GP).
    /// `enabled` is XCR0, `compacted_only` stands for XRSTORS.
    pub(super) fn restore(
        &mut self,
        layout: &Layout,
        requested: u64,
        enabled: u64,
        compacted_only: bool,
        area: &[u8],
    ) -> bool {
        let Some(header) = Header::read(area, enabled, compacted_only) else {
            return false;
        };
        let compacted = header.compacted_for.is_some();
        let loads_mxcsr = if compacted {
            requested & header.in_use & SSE != 0
        } else {
            requested & (SSE | AVX) != 0
        };
        if loads_mxcsr {
            if !self.set_mxcsr(u32::from_le_bytes(get(area, MXCSR_AT))) {
                return false;
            }
        } else if compacted && requested & SSE != 0 {
            self.put(MXCSR_AT, &MXCSR_INIT.to_le_bytes());
        }
        let loaded = requested & header.in_use;
        if requested & X87 != 0 {
            self.restore_x87(loaded & X87 != 0, area);
        }
        if requested & SSE != 0 {
            self.copy_or_clear(loaded & SSE != 0, XMM_AT..XMM_END, &area[XMM_AT..XMM_END]);
        }
        for (_, standard, _) in layout.extended(requested & !loaded, None) {
            self.bytes[standard].fill(0);
        }
        for (_, standard, start) in layout.extended(loaded, header.compacted_for) {
            let length = standard.len();
            self.bytes[standard].copy_from_slice(&area[start..start + length]);
        }
        let mut in_use = self.in_use() & !requested | loaded;
        if self.mxcsr() != MXCSR_INIT {
            // KVM takes MXCSR only with SSE state; its registers are zero then.
            in_use |= SSE;
        }
        self.put(HEADER_AT, &in_use.to_le_bytes());
        true
    }

    fn restore_x87(&mut self, loaded: bool, area: &[u8]) {
        self.copy_or_clear(loaded, 0..MXCSR_AT, &area[..MXCSR_AT]);
        self.copy_or_clear(loaded, ST_AT..XMM_AT, &area[ST_AT..XMM_AT]);
        if !loaded {
            self.put(0, &FCW_INIT.to_le_bytes());
        }
    }

    fn copy_or_clear(&mut self, copy: bool, range: std::ops::Range<usize>, from: &[u8]) {
        if copy {
            self.bytes[range].copy_from_slice(from);
        } else {
            self.bytes[range].fill(0);
        }
    }

    /// FNCLEX: clears exceptions, busy and stack fault of the x87 status.
    pub(super) fn clear_x87_exceptions(&mut self) {
        let status = self.u16_at(2) & 0x7f00;
        self.put(2, &status.to_le_bytes());
        self.use_components(X87);
    }

    /// Whether an unmasked x87 exception is pending (status bit ES).
    pub(super) fn x87_exception_pending(&self) -> bool {
        self.in_use() & X87 != 0 && self.u16_at(2) & 0x80 != 0
    }

    /// EMMS: all x87 registers are empty.
    pub(super) fn empty_x87(&mut self) {
        self.put(4, &[0]);
        self.use_components(X87);
    }

    /// FILD: pushes an integer onto the x87 stack.
    pub(super) fn push_integer(&mut self, value: i64) {
        const INVALID: u16 = 1;
        const STACK_FAULT: u16 = 1 << 6;
        const ERROR_SUMMARY: u16 = 0x8080;
        const C1: u16 = 1 << 9;
        let mut status = self.u16_at(2) & !C1;
        let top = (status >> 11).wrapping_sub(1) & 7;
        let mut number = extended_float(value);
        let full = self.bytes[4] & 1 << top != 0;
        self.use_components(X87);
        if full {
            status |= C1 | STACK_FAULT | INVALID;
            if self.u16_at(0) & INVALID == 0 {
                let status = status | ERROR_SUMMARY;
                self.put(2, &status.to_le_bytes());
                return;
            }
            // The indefinite quiet NaN.
            number = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
        }
        status = status & !(7 << 11) | top << 11;
        self.put(2, &status.to_le_bytes());
        self.bytes[4] |= 1 << top;
        // Registers are kept relative to the top: all move by one.
        self.bytes.copy_within(ST_AT..XMM_AT - 16, ST_AT + 16);
        self.bytes[ST_AT..ST_AT + 16].fill(0);
        self.put(ST_AT, &number);
    }
}

/// Header of an area to restore from.
struct Header {
    in_use: u64,
    /// XCOMP_BV without its top bit, in a compacted area.
    compacted_for: Option<u64>,
}

impl Header {
    /// `None` if it breaks a rule of XRSTOR (13.8 and 13.12).
    fn read(area: &[u8], enabled: u64, compacted_only: bool) -> Option<Self> {
        let in_use = u64::from_le_bytes(get(area, HEADER_AT));
        let xcomp = u64::from_le_bytes(get(area, XCOMP_AT));
        let reserved_clear = area[XCOMP_AT + 8..EXTENDED_AT]
            .iter()
            .all(|byte| *byte == 0);
        if xcomp & COMPACTED != 0 {
            let present = xcomp & !COMPACTED;
            let valid = present & !enabled == 0 && in_use & !present == 0 && reserved_clear;
            return valid.then_some(Self {
                in_use,
                compacted_for: Some(present),
            });
        }
        let first_reserved: [u8; 8] = get(area, XCOMP_AT + 8);
        let valid =
            !compacted_only && xcomp == 0 && in_use & !enabled == 0 && first_reserved == [0; 8];
        valid.then_some(Self {
            in_use,
            compacted_for: None,
        })
    }
}

/// An integer in the x87's 80-bit format.
fn extended_float(value: i64) -> [u8; 10] {
    let mut bytes = [0; 10];
    if value == 0 {
        return bytes;
    }
    let magnitude = value.unsigned_abs();
    let shift = magnitude.leading_zeros();
    let exponent = 16383 + 63 - u16::try_from(shift).unwrap_or(0);
    let sign = if value < 0 { 0x8000 } else { 0 };
    bytes[..8].copy_from_slice(&(magnitude << shift).to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    bytes
}

#[cfg(test)]
#[path = "fpu_tests.rs"]
mod tests;
