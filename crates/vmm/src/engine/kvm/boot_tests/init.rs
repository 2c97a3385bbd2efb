//! PID 1 of the boot tests: freestanding, so that the initramfs stays small.
//! The test compiles it with rustc. Its first argument says what to do.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

#[panic_handler]
fn on_panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}

/// The linker finds this name in core's unwind tables; nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

const READ: usize = 0;
const WRITE: usize = 1;
const OPEN: usize = 2;
const LSEEK: usize = 8;
const RT_SIGACTION: usize = 13;
const SCHED_YIELD: usize = 24;
const GETPID: usize = 39;
const FORK: usize = 57;
const EXIT: usize = 60;
const WAIT4: usize = 61;
const KILL: usize = 62;
const MOUNT: usize = 165;
const REBOOT: usize = 169;
const SCHED_GETAFFINITY: usize = 204;

fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
            in("rdx") c, in("r10") d, in("r8") e, out("rcx") _, out("r11") _);
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        call(EXIT, code, 0, 0, 0, 0);
    }
}

fn say(text: &[u8]) {
    call(WRITE, 1, text.as_ptr() as usize, text.len(), 0, 0);
}

/// Writes `name number`.
fn tell(name: &[u8], mut number: u64) {
    let mut digits = [b'0'; 20];
    let mut at = 20;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    say(name);
    say(b" ");
    say(&digits[at..]);
    say(b"\n");
}

extern "C" fn start(stack: *const usize) -> ! {
    let argc = unsafe { *stack };
    let argument: &[u8; 2] = if argc > 1 {
        unsafe { &*(*stack.add(2) as *const [u8; 2]) }
    } else {
        b"r0"
    };
    say(b"init runs\n");
    match argument[0] {
        b'p' => exit(7),
        b'l' => loop {
            call(SCHED_YIELD, 0, 0, 0, 0, 0);
        },
        b't' => everything(usize::from(argument[1] - b'0')),
        _ => {}
    }
    reboot()
}

fn reboot() -> ! {
    call(REBOOT, 0xfee1_dead, 0x2812_1969, 0x0123_4567, 0, 0);
    exit(1)
}

fn everything(disk_mib: usize) {
    let mut mask = [0u64; 16];
    let bytes = call(SCHED_GETAFFINITY, 0, 128, mask.as_mut_ptr() as usize, 0, 0);
    if bytes > 0 {
        tell(b"cpus", mask[0].count_ones().into());
    }
    let child = call(FORK, 0, 0, 0, 0, 0);
    if child == 0 {
        // Its stack is shared with the parent: the frame is copied on write.
        exit(if signals() && vectors(0x0101_0203) {
            33
        } else {
            1
        });
    }
    tell(b"parent", vectors(0x7070_7070_1111).into());
    let mut status = 0u32;
    call(WAIT4, child as usize, (&raw mut status) as usize, 0, 0, 0);
    tell(b"child", u64::from(status >> 8 & 0xff));
    disk(disk_mib << 20);
}

/// Keeps sums in vector registers over system calls and other processes.
fn vectors(seed: u64) -> bool {
    const ROUNDS: u64 = 60;
    let mut sums = [0u64; 4];
    let mut wide = [seed * ROUNDS; 8];
    let avx512 = core::arch::x86_64::__cpuid_count(7, 0).ebx & 1 << 16 != 0;
    unsafe {
        if avx512 {
            asm!("vpbroadcastq zmm30, {seed}", "vpxorq zmm31, zmm31, zmm31", seed = in(reg) seed,
                options(nostack));
        }
        asm!(
            "vmovq xmm6, {seed}",
            "vpbroadcastq ymm6, xmm6",
            "vpxor ymm7, ymm7, ymm7",
            "2:",
            "vpaddq ymm7, ymm7, ymm6",
            "test {avx512:e}, {avx512:e}",
            "jz 3f",
            "vpaddq zmm31, zmm31, zmm30",
            "3:",
            "mov eax, 24",
            "syscall",
            "dec {rounds}",
            "jnz 2b",
            "vmovdqu [{sums}], ymm7",
            "test {avx512:e}, {avx512:e}",
            "jz 4f",
            "vmovdqu64 [{wide}], zmm31",
            "4:",
            seed = in(reg) seed,
            rounds = inout(reg) ROUNDS => _,
            sums = in(reg) sums.as_mut_ptr(),
            wide = in(reg) wide.as_mut_ptr(),
            avx512 = in(reg) u64::from(avx512),
            out("rax") _, out("rcx") _, out("r11") _,
        );
    }
    sums.iter().all(|sum| *sum == seed * ROUNDS) && wide.iter().all(|sum| *sum == seed * ROUNDS)
}

global_asm!("restorer:", "mov eax, 15", "syscall");
unsafe extern "C" {
    fn restorer();
}

static mut HANDLED: bool = false;

extern "C" fn on_signal(_: i32) {
    unsafe { (&raw mut HANDLED).write_volatile(true) };
    unsafe { asm!("vpxor ymm7, ymm7, ymm7", out("xmm7") _) };
}

/// A signal's handler does not disturb vector registers.
fn signals() -> bool {
    const SA_RESTORER: usize = 0x0400_0000;
    const SIGUSR1: usize = 10;
    let action = [
        on_signal as *const () as usize,
        SA_RESTORER,
        restorer as *const () as usize,
        0,
    ];
    call(RT_SIGACTION, SIGUSR1, action.as_ptr() as usize, 0, 8, 0);
    let process = call(GETPID, 0, 0, 0, 0, 0);
    let seed = 0x1234_5678_9abc_def0u64;
    let mut found = [0u64; 4];
    unsafe {
        asm!(
            "vmovq xmm7, {seed}",
            "vpbroadcastq ymm7, xmm7",
            "syscall",
            "vmovdqu [{found}], ymm7",
            seed = in(reg) seed,
            found = in(reg) found.as_mut_ptr(),
            inlateout("rax") KILL => _,
            in("rdi") process,
            in("rsi") SIGUSR1,
            out("rcx") _, out("r11") _, out("xmm7") _,
        );
    }
    found == [seed; 4] && unsafe { (&raw const HANDLED).read_volatile() }
}

static mut BUFFER: [u8; 65536] = [0; 65536];

/// FNV-1a of 256 KiB of the first disk.
fn disk(offset: usize) {
    let dev = c"dev".as_ptr() as usize;
    let kind = c"devtmpfs".as_ptr() as usize;
    call(MOUNT, dev, c"/dev".as_ptr() as usize, kind, 0, 0);
    let file = call(OPEN, c"/dev/vda".as_ptr() as usize, 0, 0, 0, 0);
    if file < 0 {
        return tell(b"no disk", file.unsigned_abs() as u64);
    }
    let file = file as usize;
    call(LSEEK, file, offset, 0, 0, 0);
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut left = 262_144usize;
    while left > 0 {
        let buffer = &raw mut BUFFER;
        let count = call(READ, file, buffer as usize, left.min(65536), 0, 0);
        if count <= 0 {
            return tell(b"read failed", count.unsigned_abs() as u64);
        }
        let bytes = unsafe { core::slice::from_raw_parts(buffer.cast::<u8>(), count as usize) };
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        left -= count as usize;
    }
    tell(b"disk", hash);
}
