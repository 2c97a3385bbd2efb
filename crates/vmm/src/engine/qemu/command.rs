//! QEMU's command line: a microvm machine with nothing in it but our devices.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program.
const PROGRAM: &str = "qemu-system-x86_64";
/// What to do where it is missing.
pub(super) const INSTALL: &str = "install it with: apt-get install qemu-system-x86";

/// Kernel parameters that this machine needs: its console; reset by triple
/// fault, as there is neither keyboard controller nor ACPI (QEMU exits then, see
/// `-no-reboot`); warnings and worse in its log; QEMU's APIC timer runs at 1 GHz,
/// so nothing is calibrated (a parameter of our kernel's).
const CMDLINE: &str =
    "console=hvc0 loglevel=5 reboot=t tsc=reliable no_timer_check lapic_khz=1000000";

/// Virtio device types (virtio 1.2, 5).
mod device_type {
    pub(super) const NETWORK: u32 = 1;
    pub(super) const BLOCK: u32 = 2;
    pub(super) const ENTROPY: u32 = 4;
    pub(super) const SOCKET: u32 = 19;
    pub(super) const FILE_SYSTEM: u32 = 26;
}

/// How QEMU carries a kind of device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frontend {
    /// QEMU's `-device`, with its properties.
    pub(super) device: Cow<'static, str>,
    /// Queues that it serves by vhost-user; others it keeps to itself.
    pub(super) queues: usize,
    /// Between device and back end stands a `-netdev`, which takes only a
    /// connection that QEMU makes itself.
    pub(super) netdev: bool,
}

impl Frontend {
    fn new(device: &'static str, queues: usize) -> Self {
        Self {
            device: device.into(),
            queues,
            netdev: false,
        }
    }

    /// Address and MTU are told to the guest by QEMU, and so is that there is
    /// nothing to control: the back end does not see QEMU's control queue.
    fn network(config: &NetConfig) -> Self {
        let [a, b, c, d, e, f, _, _, _, _, mtu @ ..] = *config;
        let mtu = u16::from_le_bytes(mtu);
        Self {
            device: format!(
                "virtio-net-device,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},\
                 host_mtu={mtu},ctrl_vq=off,ctrl_guest_offloads=off,ctrl_rx=off,\
                 ctrl_rx_extra=off,ctrl_vlan=off,ctrl_mac_addr=off,guest_announce=off,\
                 status=off,mq=off"
            )
            .into(),
            queues: 2,
            netdev: true,
        }
    }
}

/// Begin of a network device's configuration space: address, status, pairs, MTU
/// (virtio 1.2, 5.1.4).
pub(super) type NetConfig = [u8; 12];

/// QEMU's counterpart of a back end, whose configuration space begins with
/// `config`; `None` if it has none.
pub(super) fn frontend(device_type: u32, config: &NetConfig) -> Option<Frontend> {
    Some(match device_type {
        device_type::NETWORK => Frontend::network(config),
        device_type::BLOCK => Frontend::new("vhost-user-blk,num-queues=1,queue-size=256", 1),
        // The event queue is QEMU's own.
        device_type::SOCKET => Frontend::new("vhost-user-vsock-device", 2),
        device_type::ENTROPY => Frontend::new("vhost-user-rng", 1),
        // QEMU tells the guest the tag; the back end's is never asked for.
        device_type::FILE_SYSTEM => Frontend::new(
            "vhost-user-fs-device,tag=shares,queue-size=1024,num-request-queues=1",
            2,
        ),
        _ => return None,
    })
}

/// Descriptors by number, as QEMU inherits them.
pub(super) struct Descriptors {
    pub(super) kernel: i32,
    pub(super) initramfs: i32,
    pub(super) qmp: i32,
    pub(super) console: i32,
    /// One for each device, in the order in which the guest finds them.
    pub(super) devices: Vec<(Frontend, i32)>,
}

/// The size of the machine.
pub(super) struct Size<'a> {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    /// Frequency of the guest's time stamp counter, where it is known.
    pub(super) tsc_khz: Option<u64>,
    pub(super) extra_cmdline: &'a str,
}

/// The command that runs the machine.
pub(super) fn build(program: &Path, size: &Size<'_>, fds: &Descriptors) -> Command {
    let mut command = Command::new(program);
    // Nothing of this process's environment is QEMU's affair.
    command.env_clear();
    let memory = size.memory_mib;
    let mut cmdline = CMDLINE.to_owned();
    // Writing to a string cannot fail.
    if let Some(khz) = size.tsc_khz {
        let _ = write!(cmdline, " tsc_early_khz={khz}");
    }
    if !size.extra_cmdline.is_empty() {
        let _ = write!(cmdline, " {}", size.extra_cmdline);
    }
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none"])
        .args([
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ])
        .args(["-accel", "tcg,thread=multi"])
        .args([
            "-M",
            "microvm,acpi=off,rtc=on,isa-serial=off,auto-kernel-cmdline=on,memory-backend=mem",
        ])
        // QEMU 7.2 offers 5-level paging and then hangs in it. TCG translates a
        // string instruction into a loop: where bytes are said to be as fast as
        // words (erms, fsrm), guests copy by bytes, in three times the time.
        .args(["-cpu", "max,-la57,-erms,-fsrm"])
        .args(["-smp", &smp(size.vcpus)])
        .args(["-m", &format!("{memory}M")])
        // Shared with the back ends.
        .args([
            "-object",
            &format!("memory-backend-memfd,id=mem,share=on,size={memory}M"),
        ])
        // vhost-user needs virtio 1; the back ends know no reset of one queue.
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(["-global", "virtio-device.queue_reset=off"])
        .args(["-kernel", &format!("/proc/self/fd/{}", fds.kernel)])
        .args(["-initrd", &format!("/proc/self/fd/{}", fds.initramfs)])
        .args(["-append", &cmdline])
        .args(["-chardev", &format!("socket,id=qmp,fd={}", fds.qmp)])
        .args(["-mon", "chardev=qmp,mode=control"]);
    // The guest finds the devices in this order: the first block device is vda.
    for (index, (frontend, fd)) in fds.devices.iter().enumerate() {
        let device = &frontend.device;
        if frontend.netdev {
            // QEMU thinks that descriptors cannot go over an inherited one, so
            // it connects to the socket whose place it inherits.
            command
                .args([
                    "-chardev",
                    &format!("socket,id=vu{index},path=/proc/self/fd/{fd}"),
                ])
                .args([
                    "-netdev",
                    &format!("vhost-user,id=net{index},chardev=vu{index}"),
                ])
                .args(["-device", &format!("{device},netdev=net{index}")]);
            continue;
        }
        command
            .args(["-chardev", &format!("socket,id=vu{index},fd={fd}")])
            .args(["-device", &format!("{device},chardev=vu{index}")]);
    }
    command
        .args(["-chardev", &format!("socket,id=log,fd={}", fds.console)])
        .args(["-device", "virtio-serial-device,max_ports=1"])
        .args(["-device", "virtconsole,chardev=log"]);
    command
}

/// The machine's processors. Code of a machine that can never have more than one is
/// translated without memory barriers: as no other vCPU looks, locked instructions
/// become plain ones. But the back ends do look, from processes of their own, and
/// each side of a ring would now and then miss the other's bell for good.
fn smp(vcpus: u32) -> String {
    format!("cpus={vcpus},maxcpus={}", vcpus.max(2))
}

/// Where QEMU is installed, by this process's PATH.
pub(super) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(PROGRAM))
        .find(|program| is_executable(program))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIC: NetConfig = [2, 0, 0, 0xab, 0, 1, 0, 0, 1, 0, 0xdc, 5];

    fn args(extra_cmdline: &str) -> Vec<String> {
        let size = Size {
            vcpus: 2,
            memory_mib: 256,
            tsc_khz: Some(2_500_000),
            extra_cmdline,
        };
        let fds = Descriptors {
            kernel: 5,
            initramfs: 6,
            qmp: 7,
            console: 8,
            devices: vec![
                (frontend(2, &NIC).unwrap(), 9),
                (frontend(19, &NIC).unwrap(), 10),
                (frontend(1, &NIC).unwrap(), 11),
            ],
        };
        build(Path::new("qemu"), &size, &fds)
            .get_args()
            .map(|arg| arg.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn devices_keep_their_order_and_the_console_is_last() {
        let devices: Vec<String> = args("")
            .windows(2)
            .filter(|pair| pair[0] == "-device")
            .map(|pair| pair[1].split(',').next().unwrap().to_owned())
            .collect();
        let expected = [
            "vhost-user-blk",
            "vhost-user-vsock-device",
            "virtio-net-device",
            "virtio-serial-device",
            "virtconsole",
        ];
        assert_eq!(devices, expected);
    }

    #[test]
    fn extra_command_line_is_one_argument_after_the_engine_s_own() {
        let args = args("quiet -device evil");
        let at = args.iter().position(|arg| arg == "-append").unwrap();
        assert!(args[at + 1].ends_with(" tsc_early_khz=2500000 quiet -device evil"));
        assert!(args[at + 1].starts_with(CMDLINE));
    }

    #[test]
    fn network_devices_have_address_and_mtu_and_connect_by_themselves() {
        let args = args("");
        let has = |text: &str| args.iter().any(|arg| arg.contains(text));
        assert!(has(
            "virtio-net-device,mac=02:00:00:ab:00:01,host_mtu=1500,"
        ));
        assert!(has("socket,id=vu2,path=/proc/self/fd/11"));
        assert!(has("vhost-user,id=net2,chardev=vu2"));
        assert!(has(",netdev=net2"));
    }

    #[test]
    fn device_that_qemu_lacks_has_no_frontend() {
        assert_eq!(frontend(63, &NIC), None);
    }

    #[test]
    fn shares_have_the_tag_that_the_agent_mounts() {
        let tag = format!("tag={},", vm_spec::SHARES_TAG);
        let device = frontend(device_type::FILE_SYSTEM, &NIC).unwrap().device;
        assert!(device.contains(&tag), "{device}");
    }
}
