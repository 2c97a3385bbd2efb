//! Boots our guest kernel on this host's KVM with a small init. Without
//! /dev/kvm or a kernel they are skipped, which they say on stderr.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use virtio_devices::{DiskBay, Rng, VirtioDevice};
use vm_spec::proto::VmExit;
use vm_spec::proto::vm_exit::Reason;

use super::super::{Machine, RunningVm};
use super::probe::probe;

/// Generous: an emulating KVM on a host with much else to do takes minutes.
const PATIENCE: Duration = Duration::from_secs(900);

/// The guest kernel, if it was built (`cargo xtask setup`).
fn kernel() -> Option<File> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/vmlinux");
    let path = std::env::var_os("SPHERULE_TEST_KERNEL").map_or(built, PathBuf::from);
    File::open(path).ok()
}

/// Past libtest's capture: a skip is seen and can be counted.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED (kvm boot test): {why}");
}

fn compile_init(dir: &Path) -> Vec<u8> {
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/engine/kvm/boot_tests/init.rs"
    );
    let source = std::env::var("SPHERULE_TEST_INIT").unwrap_or_else(|_| source.into());
    let output = dir.join("init");
    let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "--edition",
            "2024",
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
        ])
        .args(["-C", "relocation-model=static", "-C", "strip=symbols"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-static", "-o"])
        .arg(&output)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success(), "rustc of the tests' init");
    std::fs::read(output).unwrap()
}

/// One cpio entry (newc): mode, device numbers, name, content.
fn cpio_entry(archive: &mut Vec<u8>, mode: u32, device: (u32, u32), name: &str, data: &[u8]) {
    let fields = [
        0,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(data.len()).unwrap(),
        0,
        0,
        device.0,
        device.1,
        u32::try_from(name.len() + 1).unwrap(),
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn initramfs(dir: &Path) -> File {
    let mut archive = Vec::new();
    cpio_entry(&mut archive, 0o040_755, (0, 0), "dev", b"");
    cpio_entry(&mut archive, 0o020_600, (5, 1), "dev/console", b"");
    cpio_entry(&mut archive, 0o100_755, (0, 0), "init", &compile_init(dir));
    cpio_entry(&mut archive, 0, (0, 0), "TRAILER!!!", b"");
    let mut file = tempfile::tempfile_in(dir).unwrap();
    file.write_all(&archive).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

/// A guest under test.
struct Guest {
    vm: Box<dyn RunningVm>,
    log: Arc<Mutex<Vec<u8>>>,
    exit: Receiver<VmExit>,
    _dir: tempfile::TempDir,
}

impl Guest {
    /// `None`, said on stderr, where no guest can boot.
    fn boot(vcpus: u32, memory_mib: u64, task: &str, bay: Option<DiskBay>) -> Option<Self> {
        let found = probe();
        if !found.usable {
            skip(&found.detail);
            return None;
        }
        let Some(kernel) = kernel() else {
            skip("no guest kernel; build it with `cargo xtask setup`");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (sender, exit) = channel();
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        if let Some(bay) = bay {
            devices.push(Box::new(bay));
        }
        devices.push(Box::new(Rng::new().unwrap()));
        let mut extra = std::env::var("SPHERULE_TEST_CMDLINE").unwrap_or_default();
        extra.push_str(" -- ");
        extra.push_str(task);
        let vm = super::boot(Machine {
            kernel,
            initramfs: initramfs(dir.path()),
            vcpus,
            memory_mib,
            extra_cmdline: extra,
            dir: dir.path().into(),
            kernel_log: log.clone(),
            devices,
            on_exit: Box::new(move |exit| sender.send(exit).unwrap()),
        })
        .unwrap();
        Some(Self {
            vm,
            log,
            exit,
            _dir: dir,
        })
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    /// Waits for the guest's end.
    fn ended(&self) -> VmExit {
        match self.exit.recv_timeout(PATIENCE) {
            Ok(exit) => exit,
            Err(_) => panic!("the guest did not end; its log:\n{}", self.log()),
        }
    }

    /// Waits until the log has `text`.
    fn says(&self, text: &str) {
        let start = std::time::Instant::now();
        while !self.log().contains(text) {
            assert!(
                start.elapsed() < PATIENCE,
                "never said {text}:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn value(&self, name: &str) -> Option<u64> {
        let log = self.log();
        let line = log.lines().find(|line| line.starts_with(name))?;
        line[name.len()..].trim().parse().ok()
    }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Boots, counts processors, computes with vectors in two processes at once,
/// reads a disk, resets: one guest, as a boot takes long on some hosts.
#[test]
fn guest_with_two_vcpus_computes_reads_and_resets() {
    let content: Vec<u8> = (0..262_144u32)
        .map(|i| i.wrapping_mul(i).to_be_bytes()[2])
        .collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    let (bay, handle) = DiskBay::new("bay", "images", true);
    let offset = handle.attach("content", file).unwrap().offset;
    let Some(guest) = Guest::boot(2, 128, &format!("t{}", offset >> 20), Some(bay)) else {
        return;
    };
    let exit = guest.ended();
    let log = guest.log();
    assert_eq!(exit.reason(), Reason::GuestShutdown, "{exit:?}\n{log}");
    assert_eq!(guest.value("cpus "), Some(2), "{log}");
    assert_eq!(guest.value("parent "), Some(1), "{log}");
    assert_eq!(guest.value("child "), Some(33), "{log}");
    assert_eq!(guest.value("disk "), Some(fnv(&content)), "{log}");
}

#[test]
fn panic_is_told_with_its_line() {
    let Some(guest) = Guest::boot(1, 96, "p0", None) else {
        return;
    };
    let exit = guest.ended();
    assert_eq!(
        exit.reason(),
        Reason::GuestPanic,
        "{exit:?}\n{}",
        guest.log()
    );
    let words = "Attempted to kill init! exitcode=0x00000700";
    assert!(exit.message.contains(words), "{exit:?}");
    assert!(guest.log().contains("init runs"), "{}", guest.log());
}

#[test]
fn guest_is_paused_resumed_and_killed() {
    let Some(mut guest) = Guest::boot(1, 96, "l0", None) else {
        return;
    };
    guest.says("init runs");
    guest.vm.pause().unwrap();
    guest.vm.resume().unwrap();
    guest.vm.pause().unwrap();
    guest.vm.kill();
    assert_eq!(guest.ended().reason(), Reason::Killed);
    guest.vm.kill();
    assert!(guest.exit.try_recv().is_err());
}

#[test]
fn corrupt_kernel_is_refused_and_named() {
    if !probe().usable {
        return skip("no usable KVM");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&[0x1f, 0x8b, 8, 0]).unwrap();
    let refused = super::boot(Machine {
        kernel,
        initramfs: tempfile::tempfile().unwrap(),
        vcpus: 1,
        memory_mib: 64,
        extra_cmdline: String::new(),
        dir: dir.path().into(),
        kernel_log: Arc::new(Mutex::new(Vec::new())),
        devices: Vec::new(),
        on_exit: Box::new(|_| panic!("no guest ran")),
    });
    let Err(error) = refused else {
        panic!("booted");
    };
    assert!(format!("{error:#}").contains("must be an uncompressed vmlinux"));
}
