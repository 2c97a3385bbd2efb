//! Devices that the processes of a cgroup may read but not write: a BPF program
//! of the kind that cgroup v2 has in place of a device controller.
#![expect(unsafe_code, reason = "bpf(2) with pointers to our own structures")]
// UNSAFETY: neither rustix nor nix has bpf; its attributes carry addresses.

use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_DEVCG_ACC_WRITE: i32 = 4;

/// Kind of a device, as the kernel numbers them (`BPF_DEVCG_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Block = 1,
    Character = 2,
}

/// A device by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) kind: Kind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// struct bpf_insn; `registers`: destination in the low half, source in the high.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        immediate,
    }
}

/// Instructions before those of the first device.
const PROLOGUE: usize = 6;
/// Instructions of a device.
const EACH: usize = 4;

/// The program: 1 (allow) unless one of `devices` is opened for writing. In r1
/// there is struct bpf_cgroup_dev_ctx: access and kind, major, minor.
fn program(devices: &[Device]) -> Option<Vec<Instruction>> {
    let mut program = vec![
        instruction(0x61, 0x12, 0, 0),      // r2 = ctx.access_type
        instruction(0xbf, 0x23, 0, 0),      // r3 = r2
        instruction(0x57, 0x03, 0, 0xffff), // r3 &= 0xffff: the kind
        instruction(0x77, 0x02, 0, 16),     // r2 >>= 16: the access
        instruction(0x61, 0x14, 4, 0),      // r4 = ctx.major
        instruction(0x61, 0x15, 8, 0),      // r5 = ctx.minor
    ];
    debug_assert_eq!(program.len(), PROLOGUE);
    // Two instructions of leave stand before those of the refusal.
    let deny = PROLOGUE + EACH * devices.len() + 2;
    for device in devices {
        let number = |n: u32| i32::try_from(n).ok();
        program.push(instruction(0x55, 0x03, 3, device.kind as i32)); // if r3 != ..
        program.push(instruction(0x55, 0x04, 2, number(device.major)?));
        program.push(instruction(0x55, 0x05, 1, number(device.minor)?));
        let distance = i16::try_from(deny - program.len() - 1).ok()?;
        program.push(instruction(0x45, 0x02, distance, BPF_DEVCG_ACC_WRITE)); // if r2 & ..
    }
    for result in [1, 0] {
        program.push(instruction(0xb7, 0x00, 0, result)); // r0 = ..
        program.push(instruction(0x95, 0x00, 0, 0)); // leave
    }
    Some(program)
}

/// The start of union bpf_attr for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The start of union bpf_attr for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// From now on processes of `cgroup`, and of those below, may not open `devices`
/// for writing. EINVAL if these are too many.
pub(crate) fn forbid_writing(cgroup: impl AsFd, devices: &[Device]) -> Result<(), Errno> {
    let program = program(devices).ok_or(Errno::INVAL)?;
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"".as_ptr().expose_provenance() as u64,
    };
    // SAFETY: `load` is a whole attribute of the size passed; the instructions and
    // the string it names live until the call returns, and are only read.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of::<Load>(),
        )
    };
    let fd = i32::try_from(super::check(fd)?).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = Attach {
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_bpf_fd: loaded.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` is a whole attribute of the size passed, only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    };
    super::check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: Kind, major: u32, minor: u32) -> Device {
        Device { kind, major, minor }
    }

    /// What the program answers.
    fn run(program: &[Instruction], kind: Kind, access: i64, major: u32, minor: u32) -> i64 {
        let context = [access << 16 | kind as i64, major.into(), minor.into()];
        let (mut registers, mut at) = ([0_i64; 16], 0_usize);
        loop {
            let i = program[at];
            at += 1;
            let to = usize::from(i.registers & 15);
            let from = usize::from(i.registers >> 4);
            let immediate = i64::from(i.immediate);
            let jumps = match i.code {
                0x61 => {
                    assert_eq!(from, 1);
                    registers[to] = context[usize::try_from(i.offset).unwrap() / 4];
                    false
                }
                0xbf => {
                    registers[to] = registers[from];
                    false
                }
                0x57 => {
                    registers[to] &= immediate;
                    false
                }
                0x77 => {
                    registers[to] >>= immediate;
                    false
                }
                0xb7 => {
                    registers[to] = immediate;
                    false
                }
                0x55 => registers[to] != immediate,
                0x45 => registers[to] & immediate != 0,
                0x95 => return registers[0],
                code => panic!("{code:x}"),
            };
            if jumps {
                at += usize::try_from(i.offset).unwrap();
            }
        }
    }

    #[test]
    fn exactly_the_devices_named_are_not_written() {
        let devices = [
            device(Kind::Character, 1, 11),
            device(Kind::Block, 254, 0),
            device(Kind::Character, 1, 5),
        ];
        let program = program(&devices).unwrap();
        let (mknod, read, write) = (1, 2, 4);
        for d in devices {
            assert_eq!(run(&program, d.kind, read, d.major, d.minor), 1);
            assert_eq!(run(&program, d.kind, mknod, d.major, d.minor), 1);
            assert_eq!(run(&program, d.kind, write, d.major, d.minor), 0);
            assert_eq!(run(&program, d.kind, read | write, d.major, d.minor), 0);
        }
        for (kind, major, minor) in [
            (Kind::Character, 1, 3),
            (Kind::Block, 1, 11),
            (Kind::Character, 254, 0),
            (Kind::Character, 2, 11),
        ] {
            assert_eq!(run(&program, kind, write, major, minor), 1);
        }
    }

    #[test]
    fn more_devices_than_a_jump_spans_are_refused() {
        let many = |count| vec![device(Kind::Character, 1, 3); count];
        assert!(program(&many(512)).is_some());
        assert!(program(&many(20_000)).is_none());
    }
}
