//! From a boot request to a machine: checks what the daemon sent, makes the
//! device back ends.

use crate::engine::Machine;
use crate::kernel_log::KernelLog;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use virtio_devices::{
    BayHandle, DiskBay, Fs, FsHandle, FsLimits, Net, NetError, NetHandle, NetSettings, Rng,
    VirtioDevice, Vsock,
};
use vm_spec::LimitError;
use vm_spec::proto::{BootRequest, Nic, VmExit};

/// Longest addition to the kernel command line: x86 kernels take 2048 bytes in
/// all.
const MAX_EXTRA_CMDLINE: usize = 1024;

/// Names of network devices, in the request's order.
const NIC_NAMES: [&str; vm_spec::MAX_NICS] = [
    "net0", "net1", "net2", "net3", "net4", "net5", "net6", "net7",
];

/// Bays of volumes: their names, and those of their devices in the guest, which
/// numbers block devices in the order in which it finds them.
const VOLUME_BAYS: [(&str, &str); vm_spec::MAX_VOLUME_BAYS as usize] = [
    ("blk-vol0", "vdc"),
    ("blk-vol1", "vdd"),
    ("blk-vol2", "vde"),
    ("blk-vol3", "vdf"),
];

/// Why no machine can be made of a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// A number is out of range.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The addition to the command line cannot be passed on.
    #[error("extra_cmdline is not printable ASCII of at most {MAX_EXTRA_CMDLINE} bytes")]
    Cmdline,
    /// The kernel is none.
    #[error("the kernel is {0}; an uncompressed 64-bit x86 ELF file (vmlinux) is needed")]
    Kernel(&'static str),
    /// The initramfs is none.
    #[error("the initramfs is {0}; a cpio archive (newc), perhaps compressed, is needed")]
    Initramfs(&'static str),
    /// More or fewer TAPs than the NICs have queue pairs.
    #[error("the NICs have {wanted} queue pairs and {came} descriptors of TAPs came")]
    Taps {
        /// Queue pairs of all NICs.
        wanted: usize,
        /// Descriptors after the kernel log's.
        came: usize,
    },
    /// A TAP or the settings of a NIC are of no use.
    #[error("the network device {name} cannot be made")]
    Nic {
        /// Name of the device.
        name: &'static str,
        /// What is wrong.
        #[source]
        source: NetError,
    },
    /// A file could not be read or a device not be made.
    #[error("{what} failed")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// The files of a boot request.
pub(crate) struct BootFiles {
    /// Uncompressed ELF kernel.
    pub(crate) kernel: File,
    /// Cpio archive.
    pub(crate) initramfs: File,
    /// Open for appending.
    pub(crate) kernel_log: File,
    /// The queues of the NICs' TAPs.
    pub(crate) taps: Vec<OwnedFd>,
}

/// The parts of a machine that stay in reach while it runs.
pub(crate) struct Handles {
    pub(crate) read_only: BayHandle,
    pub(crate) writable: BayHandle,
    /// Of volumes, with the names of their devices in the guest.
    pub(crate) volumes: Vec<(&'static str, BayHandle)>,
    /// Of the virtio-fs device, if the request asked for one.
    pub(crate) shares: Option<FsHandle>,
    /// Of the NICs, in the request's order.
    pub(crate) nics: Vec<NetHandle>,
}

/// Builds a machine in `dir`. `on_exit` gets the end of its guest, and the log
/// in which a panic may stand.
pub(crate) fn build(
    request: &BootRequest,
    files: BootFiles,
    dir: &Path,
    on_exit: impl FnOnce(VmExit, &Mutex<KernelLog>) + Send + 'static,
) -> Result<(Machine, Handles), BuildError> {
    vm_spec::check_boot(request)?;
    check_cmdline(&request.extra_cmdline)?;
    check_kernel(&files.kernel)?;
    check_initramfs(&files.initramfs)?;
    let host = |what| move |source| BuildError::Host { what, source };
    let kernel_log = KernelLog::new(files.kernel_log, request.kernel_log_limit)
        .map_err(host("reading the size of the kernel log"))?;
    let kernel_log = Arc::new(Mutex::new(kernel_log));
    let (images, read_only) = DiskBay::new("blk-ro", "spherule-ro", true);
    let (scratch, writable) = DiskBay::new("blk-rw", "spherule-rw", false);
    let vsock = Vsock::new(
        guest_api::GUEST_CID.into(),
        dir.join(vm_spec::files::VSOCK_SOCKET),
    )
    .map_err(host("making the vsock's socket"))?;
    let optional = vm_spec::optional_devices(request)?;
    let mut devices: Vec<Box<dyn VirtioDevice>> =
        vec![Box::new(images), Box::new(scratch), Box::new(vsock)];
    if optional.entropy {
        let rng = Rng::new().map_err(host("reading from the host's random number generator"))?;
        devices.push(Box::new(rng));
    }
    let mut volumes = Vec::new();
    for (name, in_guest) in VOLUME_BAYS
        .into_iter()
        .take(usize::try_from(optional.volume_bays).unwrap_or(usize::MAX))
    {
        let (device, handle) = DiskBay::for_volumes(name, "spherule-volumes");
        devices.push(Box::new(device));
        volumes.push((in_guest, handle));
    }
    let mut shares = None;
    if request.shares {
        let (device, handle) =
            Fs::new(vm_spec::SHARES_TAG, share_limits()).map_err(host("opening /proc/self/fd"))?;
        devices.push(Box::new(device));
        shares = Some(handle);
    }
    let mut nics = Vec::new();
    for (device, handle) in make_nics(request, files.taps)? {
        devices.push(Box::new(device));
        nics.push(handle);
    }
    let log_at_exit = kernel_log.clone();
    let machine = Machine {
        kernel: files.kernel,
        initramfs: files.initramfs,
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        extra_cmdline: request.extra_cmdline.clone(),
        dir: dir.to_owned(),
        kernel_log: kernel_log as Arc<Mutex<dyn Write + Send>>,
        devices,
        on_exit: Box::new(move |exit| on_exit(exit, &log_at_exit)),
    };
    let handles = Handles {
        read_only,
        writable,
        volumes,
        shares,
        nics,
    };
    Ok((machine, handles))
}

/// The network devices, each with its share of the TAPs.
fn make_nics(
    request: &BootRequest,
    taps: Vec<OwnedFd>,
) -> Result<Vec<(Net, NetHandle)>, BuildError> {
    let wanted: usize = vm_spec::tap_counts(request).sum();
    if taps.len() != wanted {
        return Err(BuildError::Taps {
            wanted,
            came: taps.len(),
        });
    }
    let mut taps = taps.into_iter();
    let nics = request.nics.iter().zip(vm_spec::tap_counts(request));
    nics.zip(NIC_NAMES)
        .map(|((nic, count), name)| {
            let taps = taps.by_ref().take(count).collect();
            make_nic(nic, name, taps).map_err(|source| BuildError::Nic { name, source })
        })
        .collect()
}

fn make_nic(
    nic: &Nic,
    name: &'static str,
    taps: Vec<OwnedFd>,
) -> Result<(Net, NetHandle), NetError> {
    let settings = NetSettings {
        name,
        mac: <[u8; 6]>::try_from(nic.mac.as_slice()).map_err(|_| NetError::Mac)?,
        mtu: nic.mtu,
        anti_spoof: nic.anti_spoof,
    };
    Net::new(settings, taps)
}

/// How many descriptors the guest may make this process hold for shares: of all
/// that it may have, half for files looked up and three eighths for open ones. The
/// guest caches no names, so it knows little more than what it has open: a walk of
/// 100,000 files holds a handful.
fn share_limits() -> FsLimits {
    /// A descriptor pins some KiB of the host's memory.
    const MOST_NODES: u64 = 128 << 10;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    let limit = limit.unwrap_or(u64::MAX);
    let count = |value: u64| usize::try_from(value.min(MOST_NODES)).unwrap_or(usize::MAX);
    FsLimits {
        nodes: count(limit / 2),
        handles: count(limit / 8 * 3),
    }
}

fn check_cmdline(extra: &str) -> Result<(), BuildError> {
    let printable = extra.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if printable && extra.len() <= MAX_EXTRA_CMDLINE {
        Ok(())
    } else {
        Err(BuildError::Cmdline)
    }
}

/// The first bytes of a file: as many as there are.
fn head<const N: usize>(file: &File, what: &'static str) -> Result<Vec<u8>, BuildError> {
    let fail = |source| BuildError::Host { what, source };
    let mut bytes = vec![0; N];
    let mut filled = 0;
    while filled < N {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A first look, so that every engine refuses the obvious in the same words.
fn check_kernel(file: &File) -> Result<(), BuildError> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const MACHINE_X86_64: [u8; 2] = 62u16.to_le_bytes();
    let head = head::<64>(file, "reading the kernel")?;
    let refuse = |what| Err(BuildError::Kernel(what));
    if head.is_empty() {
        return refuse("an empty file");
    }
    if head.starts_with(b"MZ") {
        return refuse("a bzImage");
    }
    if !head.starts_with(b"\x7fELF") {
        return refuse("no ELF file");
    }
    if head.len() < 64 {
        return refuse("cut off");
    }
    if head[4..6] != [CLASS_64, LITTLE_ENDIAN] || head[18..20] != MACHINE_X86_64 {
        return refuse("for another architecture");
    }
    Ok(())
}

fn check_initramfs(file: &File) -> Result<(), BuildError> {
    // cpio newc, newc with checksums, gzip, xz, zstd, lz4 (legacy).
    const MAGIC: [&[u8]; 6] = [
        b"070701",
        b"070702",
        b"\x1f\x8b",
        b"\xfd7zXZ",
        b"\x28\xb5\x2f\xfd",
        b"\x02\x21\x4c\x18",
    ];
    let head = head::<8>(file, "reading the initramfs")?;
    if head.is_empty() {
        return Err(BuildError::Initramfs("an empty file"));
    }
    if MAGIC.iter().any(|magic| head.starts_with(magic)) {
        Ok(())
    } else {
        Err(BuildError::Initramfs("no archive"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn elf(class: u8, machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes
    }

    #[test]
    fn kernel_must_be_a_64_bit_x86_elf() {
        check_kernel(&file(&elf(2, 62))).unwrap();
        for (bytes, words) in [
            (vec![], "empty"),
            (b"MZ bzImage".to_vec(), "bzImage"),
            (b"#!/bin/sh".to_vec(), "no ELF"),
            (b"\x7fELF\x02\x01".to_vec(), "cut off"),
            (elf(1, 3), "architecture"),
            (elf(2, 183), "architecture"),
        ] {
            let error = check_kernel(&file(&bytes)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn initramfs_must_be_an_archive() {
        check_initramfs(&file(b"070701000")).unwrap();
        check_initramfs(&file(b"\x28\xb5\x2f\xfd zstd")).unwrap();
        assert!(check_initramfs(&file(b"")).is_err());
        assert!(check_initramfs(&file(b"hello")).is_err());
    }

    #[test]
    fn command_line_must_be_printable_and_short() {
        check_cmdline("quiet loglevel=3").unwrap();
        assert!(check_cmdline("a\nb").is_err());
        assert!(check_cmdline("naïve").is_err());
        assert!(check_cmdline(&"x".repeat(MAX_EXTRA_CMDLINE + 1)).is_err());
    }
}
