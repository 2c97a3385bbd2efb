//! Counts the instructions that the guest kernel needs until its first program
//! runs.
//!
//! QEMU's instruction count makes one guest instruction one nanosecond of the
//! guest's time, so the time stamp counter that the first instruction of init
//! reads is that number, with each wait counted as the nanoseconds it would
//! last. It is the same number each time, whatever else the machine does.

use crate::guest::Cpio;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Guest memory of a measured boot.
const MEMORY_MIB: u32 = 256;
/// More than a boot under instruction count takes on a loaded machine.
const LIMIT_SECONDS: &str = "300";
/// What the engine for QEMU gives the kernel, with the frequencies of counted
/// time: one instruction a nanosecond, and QEMU's APIC timer of 1 GHz.
const COMMAND_LINE: &str = "console=hvc0 quiet reboot=t tsc=reliable no_timer_check \
     noreplace-smp dummy.numdummies=0 tsc_early_khz=1000000 lpj=10000000 lapic_khz=1000000";

/// One measured boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Count {
    /// What was booted.
    pub(crate) what: String,
    /// Number of vCPUs.
    pub(crate) vcpus: u32,
    /// Instructions, waits included as nanoseconds, from power-on to init.
    pub(crate) instructions: u64,
}

/// Boots the kernel with one and with two vCPUs; with the guest agent's
/// initramfs too where that is built.
pub(crate) fn measure(root: &Path, vmlinux: &Path) -> anyhow::Result<Vec<Count>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let program = compile_init(root, folder.path())?;
    let alone = folder.path().join("alone.cpio");
    let mut cpio = Cpio::default();
    cpio.entry("init", 0o100_755, (0, 0), &program);
    let archive = cpio.finish();
    fs::write(&alone, &archive).context("cannot write an initramfs")?;
    let mut boots = vec![("kernel", alone)];

    let agents = root.join("target/guest/initramfs.cpio");
    if let Ok(mut both) = fs::read(&agents) {
        // The kernel unpacks archive after archive: the agent's files cost what
        // they cost, then our init takes the place of theirs.
        both.extend_from_slice(&archive);
        let path = folder.path().join("agent.cpio");
        fs::write(&path, both).context("cannot write an initramfs")?;
        boots.push(("kernel and agent's initramfs", path));
    }

    let mut counts = Vec::new();
    for (what, initramfs) in &boots {
        for vcpus in [1, 2] {
            let instructions = boot(vmlinux, initramfs, vcpus)?;
            counts.push(Count {
                what: (*what).to_owned(),
                vcpus,
                instructions,
            });
        }
    }
    Ok(counts)
}

/// For people.
pub(crate) fn print(counts: &[Count]) {
    println!("instructions from power-on to the first instruction of init, waits included:");
    for Count {
        what,
        vcpus,
        instructions,
    } in counts
    {
        println!(
            "    {what}, {vcpus} vCPU: {:.2} million",
            *instructions as f64 / 1e6
        );
    }
}

/// For `cargo xtask bench`.
pub(crate) fn to_json(counts: &[Count]) -> Value {
    counts
        .iter()
        .map(|c| json!({"what": c.what, "vcpus": c.vcpus, "instructions": c.instructions}))
        .collect()
}

fn compile_init(root: &Path, folder: &Path) -> anyhow::Result<Vec<u8>> {
    let program = folder.join("init");
    let source = root.join("guest-kernel/measure/init.c");
    let out = Command::new("gcc")
        .args([
            "-Os",
            "-Wall",
            "-Werror",
            "-ffreestanding",
            "-fno-stack-protector",
            "-fno-pie",
            "-no-pie",
            "-nostdlib",
            "-static",
            "-s",
            "-Wl,--build-id=none",
            "-Wl,-z,noseparate-code",
            "-o",
        ])
        .arg(&program)
        .arg(&source)
        .output()
        .context("cannot run gcc")?;
    if !out.status.success() {
        bail!(
            "cannot compile {}:\n{}",
            source.display(),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    fs::read(&program).context("gcc left no program")
}

fn boot(vmlinux: &Path, initramfs: &Path, vcpus: u32) -> anyhow::Result<u64> {
    let out = Command::new("timeout")
        .args([LIMIT_SECONDS, "qemu-system-x86_64"])
        .args(["-M", "microvm,accel=tcg,acpi=off,auto-kernel-cmdline=on"])
        .args(["-cpu", "max,-la57,-erms", "-icount", "shift=0,sleep=off"])
        .args(["-m", &MEMORY_MIB.to_string(), "-smp", &vcpus.to_string()])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(["-device", "virtio-serial-device,max_ports=1"])
        .args([
            "-device",
            "virtconsole,chardev=log",
            "-chardev",
            "stdio,id=log",
        ])
        .arg("-kernel")
        .arg(vmlinux)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", COMMAND_LINE])
        .stdin(std::process::Stdio::null())
        .output()
        .context("cannot start qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)")?;
    let console = String::from_utf8_lossy(&out.stdout);
    counted(&console).with_context(|| {
        format!(
            "the measured boot did not reach its init ({}); console:\n{console}\nQEMU:\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        )
    })
}

/// The number in the line that `guest-kernel/measure/init.c` writes.
fn counted(console: &str) -> Option<u64> {
    console.lines().find_map(|line| {
        line.trim()
            .strip_prefix("instructions=")?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_is_found_among_kernel_messages() {
        let console = "[    0.1] hello\r\ninstructions=            31415926\r\nend";
        assert_eq!(counted(console), Some(31_415_926));
        assert_eq!(counted("Kernel panic"), None);
        assert_eq!(counted("instructions= many"), None);
    }
}
