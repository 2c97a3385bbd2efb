//! Starts the real spherule-vmm by the real launcher, with our kernel and the
//! tests' own PID 1 (guest/init.rs), and talks to it.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use vm_launcher::{Launcher, VmmClient, VmmProcess};
use vm_spec::proto::{BootRequest, BootResponse, Engine};

/// After so long a guest hangs: an emulating KVM on a busy host is slow.
pub(crate) const HANG: Duration = Duration::from_secs(180);

/// How long a guest may take to accept a connection, before the next is tried.
const SILENCE: Duration = Duration::from_secs(5);

/// The program under test.
pub(crate) fn launcher() -> Launcher {
    Launcher::new(env!("CARGO_BIN_EXE_spherule-vmm"))
}

/// The root of the source tree.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The guest kernel, if it was built.
pub(crate) fn kernel() -> Option<PathBuf> {
    let path = workspace().join("target/guest/vmlinux");
    path.exists().then_some(path)
}

/// Says that a test did not run, past the test harness's capture.
pub(crate) fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// The engines that can be tested here; an engine that cannot is a skip.
pub(crate) fn qemu_or_skip(test: &str) -> bool {
    let probe = launcher().probe().unwrap();
    if !probe.qemu.usable {
        skip(test, &probe.qemu.detail);
    } else if kernel().is_none() {
        skip(test, "no guest kernel; run cargo xtask setup");
    }
    probe.qemu.usable && kernel().is_some()
}

/// An archive with the tests' PID 1, built once per test binary.
pub(crate) fn initramfs() -> File {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = ARCHIVE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("init");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs");
        let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args([
                "--edition",
                "2024",
                "-C",
                "opt-level=s",
                "-C",
                "panic=abort",
            ])
            .args(["-C", "strip=symbols", "-C", "target-feature=+crt-static"])
            .arg("-o")
            .args([&program, &source])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
        cpio(&std::fs::read(program).unwrap())
    });
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A cpio archive (newc) with /dev/console and /init.
fn cpio(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut entry = |number: u32, name: &str, mode: u32, device: (u32, u32), data: &[u8]| {
        let name_size = u32::try_from(name.len()).unwrap() + 1;
        let size = u32::try_from(data.len()).unwrap();
        archive.extend_from_slice(b"070701");
        let fields = [
            number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    entry(1, "dev", 0o040_755, (0, 0), &[]);
    entry(2, "dev/console", 0o020_600, (5, 1), &[]);
    entry(3, "init", 0o100_755, (0, 0), init);
    entry(0, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// One VMM process in a directory of its own. Killed when dropped.
pub(crate) struct Vmm {
    pub(crate) dir: TempDir,
    pub(crate) process: VmmProcess,
    pub(crate) client: VmmClient,
}

impl Vmm {
    /// A process that has booted nothing yet.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("vmm.log")).unwrap();
        let process = launcher().spawn(dir.path(), log, None).unwrap();
        let client = process.connect().unwrap();
        Self {
            dir,
            process,
            client,
        }
    }

    /// A process with a booted guest of this engine.
    pub(crate) fn booted(engine: Engine, vcpus: u32) -> Self {
        let mut vmm = Self::start();
        vmm.boot(&request(engine, vcpus)).unwrap();
        vmm
    }

    pub(crate) fn boot(
        &mut self,
        request: &BootRequest,
    ) -> Result<BootResponse, vm_launcher::ClientError> {
        let kernel = File::open(kernel().unwrap()).unwrap();
        self.boot_with(request, &kernel, &initramfs())
    }

    pub(crate) fn boot_with(
        &mut self,
        request: &BootRequest,
        kernel: &File,
        initramfs: &File,
    ) -> Result<BootResponse, vm_launcher::ClientError> {
        let log = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(self.dir.path().join("kernel.log"))
            .unwrap();
        self.client.boot(request, kernel, initramfs, &log)
    }

    /// Boots with NICs on these TAPs.
    pub(crate) fn boot_on_network(
        &mut self,
        request: &BootRequest,
        taps: &[BorrowedFd<'_>],
    ) -> Result<BootResponse, vm_launcher::ClientError> {
        self.boot_on_network_with(request, &initramfs(), taps)
    }

    /// The same with another archive.
    pub(crate) fn boot_on_network_with(
        &mut self,
        request: &BootRequest,
        initramfs: &File,
        taps: &[BorrowedFd<'_>],
    ) -> Result<BootResponse, vm_launcher::ClientError> {
        let kernel = File::open(kernel().unwrap()).unwrap();
        let path = self.dir.path().join("kernel.log");
        let mut options = File::options();
        let log = options.create(true).read(true).append(true).open(path);
        self.client
            .boot_on_network(request, &kernel, initramfs, log.unwrap(), taps)
    }

    pub(crate) fn kernel_log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("kernel.log")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn vmm_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("vmm.log")).unwrap()
    }

    /// A connection to PID 1 of the guest, which may still be booting: the
    /// connection is tried until the guest listens or the VM ends.
    pub(crate) fn guest(&self) -> Guest {
        let path = self.dir.path().join(vm_spec::files::VSOCK_SOCKET);
        loop {
            if let Some(guest) = Guest::connect(&path) {
                return guest;
            }
            assert!(
                !self.process.has_ended(),
                "the VM ended before the guest listened: {}\n{}",
                self.vmm_log(),
                self.kernel_log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Names left in the directory.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.process.kill();
        self.process.wait_exit();
    }
}

/// A small guest of this engine.
pub(crate) fn request(engine: Engine, vcpus: u32) -> BootRequest {
    BootRequest {
        engine: engine.into(),
        vcpus,
        memory_mib: 192,
        ..BootRequest::default()
    }
}

/// A connection to PID 1 of a guest.
pub(crate) struct Guest {
    pub(crate) stream: BufReader<UnixStream>,
}

impl Guest {
    fn connect(path: &Path) -> Option<Self> {
        let mut stream = UnixStream::connect(path).ok()?;
        // Linux loses the refusal of a connection that comes while its vsock
        // driver starts, so silence is an answer, too.
        stream.set_read_timeout(Some(SILENCE)).ok()?;
        stream.set_write_timeout(Some(HANG)).ok()?;
        stream.write_all(b"CONNECT 1024\n").ok()?;
        let mut line = String::new();
        // By single bytes: what the guest says first may be there already, and is for
        // whoever takes the stream.
        BufReader::with_capacity(1, &stream)
            .read_line(&mut line)
            .ok()?;
        // A guest that hangs fails its test instead of the whole run.
        stream.set_read_timeout(Some(HANG)).ok()?;
        let stream = BufReader::new(stream);
        line.starts_with("OK ").then_some(Self { stream })
    }

    /// Sends a line, returns the line that comes back (empty: the guest is gone).
    pub(crate) fn ask(&mut self, line: &str) -> String {
        let mut answer = String::new();
        let sent = self
            .stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes());
        if sent.is_ok() {
            let _ = self.stream.read_line(&mut answer);
        }
        answer.trim_end().to_owned()
    }
}

/// FNV-1a, as guest/init.rs computes it.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A file of `len` bytes that are not all alike.
pub(crate) fn patterned(len: usize) -> (File, Vec<u8>) {
    let mut state = 0x9e37_79b9_u32;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(len)
    .collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

/// Whether a process of this number runs (a zombie does not).
pub(crate) fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}
