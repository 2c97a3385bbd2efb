//! What /dev/kvm is worth here: whether it opens, and whether guest kernels run
//! on the processor or in KVM's instruction emulator.
#![expect(unsafe_code)]
// UNSAFETY: the measured guest's memory is mapped into a VM.

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::regs;

/// Guest of the measurement: page tables, and a loop.
const MEMORY_BYTES: usize = 64 << 10;
const CODE: u64 = 0x1000;
/// Two instructions each. An emulator at its usual two million instructions a
/// second takes 5 ms; a processor, with entry and exit, 10 µs.
const ITERATIONS: u32 = 5_000;
/// A short loop on a busy host may be unlucky; the best of a few is the truth.
const RUNS: usize = 3;
/// Millions of instructions a second: far above what an emulator reaches (2),
/// far below what a processor does even with the cost of entry and exit (1000).
const NATIVE_MIPS: f64 = 40.0;

/// What was found out about KVM.
#[derive(Debug, Clone)]
pub(crate) struct KvmProbe {
    /// /dev/kvm opens and runs a guest.
    pub(crate) usable: bool,
    /// Guest kernels run on the processor, not in an emulator.
    pub(crate) native: bool,
    /// A sentence for people: what was found, and what to do about it.
    pub(crate) detail: String,
}

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("a KVM call failed ({0})")]
    Kvm(#[from] kvm_ioctls::Error),
    #[error("{0}")]
    Regs(#[from] regs::RegsError),
    #[error("cannot map memory for the measurement ({0})")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    #[error("cannot write the measurement's guest ({0})")]
    Write(#[from] vm_memory::GuestMemoryError),
    #[error("the measurement's guest ended with {0}")]
    Exit(String),
}

fn unusable(detail: String) -> KvmProbe {
    KvmProbe {
        usable: false,
        native: false,
        detail,
    }
}

/// Opens /dev/kvm and measures it; takes some 20 ms on an emulating KVM, far
/// less on others.
pub(crate) fn probe() -> KvmProbe {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let text = match error.errno() {
                libc::ENOENT | libc::ENODEV | libc::ENXIO => {
                    "there is no /dev/kvm: load the module kvm_intel or kvm_amd, and switch on \
                     virtualization in the firmware"
                        .into()
                }
                libc::EACCES | libc::EPERM => {
                    "no permission for /dev/kvm: give this user the group kvm".into()
                }
                _ => format!("/dev/kvm does not open: {error}"),
            };
            return unusable(text);
        }
    };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return unusable(format!(
            "/dev/kvm has API version {version}, not {KVM_API_VERSION}"
        ));
    }
    match measure(&kvm) {
        Ok(mips) if mips >= NATIVE_MIPS => KvmProbe {
            usable: true,
            native: true,
            detail: format!(
                "KVM runs guest kernels natively ({mips:.0} million instructions a second)"
            ),
        },
        Ok(mips) => KvmProbe {
            usable: true,
            native: false,
            detail: format!(
                "KVM has no hardware virtualization here: it emulates guest kernels at {mips:.1} \
                 million instructions a second{}",
                hint()
            ),
        },
        Err(error) => unusable(format!("/dev/kvm opens but runs no guest: {error}")),
    }
}

/// The usual reason, where it can be seen.
fn hint() -> &'static str {
    if std::path::Path::new("/sys/module/kvm_pvm").exists() {
        " (module kvm_pvm)"
    } else {
        ""
    }
}

/// Best of a few timed loops, in millions of instructions a second.
fn measure(kvm: &Kvm) -> Result<f64, ProbeError> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    regs::write_tables(&memory)?;
    // mov ecx, ITERATIONS; 1: dec ecx; jnz 1b; hlt
    let [a, b, c, d] = ITERATIONS.to_le_bytes();
    let code = [0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc, 0xf4];
    memory.write_slice(&code, GuestAddress(CODE))?;

    let vm = kvm.create_vm()?;
    for region in memory.iter() {
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping has this length and is dropped after vm and vCPU.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    let mut vcpu = vm.create_vcpu(0)?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        best = best.min(time_loop(&mut vcpu)?);
        if mips(best) >= NATIVE_MIPS {
            break;
        }
    }
    Ok(mips(best))
}

fn mips(time: Duration) -> f64 {
    f64::from(2 * ITERATIONS) / time.as_secs_f64().max(1e-9) / 1e6
}

fn time_loop(vcpu: &mut VcpuFd) -> Result<Duration, ProbeError> {
    regs::set_boot_registers(vcpu, CODE)?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(start.elapsed()),
            Ok(exit) => return Err(ProbeError::Exit(format!("{exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_says_something_consistent() {
        let found = probe();
        assert!(!found.detail.is_empty());
        assert_eq!(found.usable, found.detail.contains("instructions a second"));
        assert!(!found.native || found.usable);
    }

    #[test]
    fn an_emulator_and_a_processor_are_told_apart() {
        assert!(mips(Duration::from_millis(2)) < NATIVE_MIPS);
        assert!(mips(Duration::from_micros(50)) >= NATIVE_MIPS);
    }
}
