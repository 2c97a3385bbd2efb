//! The figures that a guest tells of itself: plain structs, whose texts and
//! lists are bounded, since the guest may say anything.

use crate::guest::printable;
use guest_api::proto;

/// Most devices or interfaces that are taken.
const MAX_ITEMS: usize = 64;
/// Longest name of an interface that is taken, in characters.
const MAX_NAME: usize = 15;

/// Figures of a container, or of all of a sandbox's containers together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU time.
    pub cpu: CpuUsage,
    /// Memory.
    pub memory: MemoryUsage,
    /// Block devices.
    pub io: IoUsage,
    /// Processes.
    pub processes: u64,
    /// Threads of all of them.
    pub threads: u64,
    /// Most threads that are allowed; 0: no limit.
    pub threads_max: u64,
    /// Open file descriptors.
    pub file_descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
    /// Of a container: its writable layer; of a sandbox: the scratch disk.
    pub file_system: FileSystemUsage,
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuUsage {
    /// All of it.
    pub total_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// In kernel mode.
    pub system_ns: u64,
    /// Periods of the limit that have passed.
    pub periods: u64,
    /// Periods in which the limit was reached.
    pub throttled_periods: u64,
    /// Time for which it was held back, in nanoseconds.
    pub throttled_ns: u64,
    /// Waiting for a CPU.
    pub pressure: Pressure,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryUsage {
    /// All that is charged, page cache included.
    pub current: u64,
    /// The most that ever was.
    pub peak: u64,
    /// 0: none.
    pub limit: u64,
    /// Not of files.
    pub anonymous: u64,
    /// Of files: the page cache.
    pub file: u64,
    /// Page cache that was not used lately.
    pub inactive_file: u64,
    /// Page cache that was.
    pub active_file: u64,
    /// Page cache that is mapped.
    pub mapped_file: u64,
    /// The kernel's, for these processes.
    pub kernel: u64,
    /// Shared memory and tmpfs.
    pub shared: u64,
    /// Number of page faults.
    pub page_faults: u64,
    /// Those of them that had to read a disk.
    pub major_page_faults: u64,
    /// Processes that the OOM killer ended.
    pub oom_kills: u64,
    /// How often the limit was reached.
    pub limit_hits: u64,
    /// Waiting for memory.
    pub pressure: Pressure,
}

/// What went to and from block devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IoUsage {
    /// One a device.
    pub devices: Vec<DeviceIo>,
    /// Waiting for a device.
    pub pressure: Pressure,
}

/// One block device of the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Discard requests.
    pub discards: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
}

/// Pressure stall information (PSI).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some of the tasks waited.
    pub some: Stall,
    /// All of them did.
    pub full: Stall,
}

/// How long tasks waited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Microseconds.
    pub total_us: u64,
    /// Percent of the last 10 s, 0 to 100.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
}

/// A file system or a part of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystemUsage {
    /// Bytes of this part.
    pub used_bytes: u64,
    /// Inodes of this part.
    pub used_inodes: u64,
    /// Bytes of the file system.
    pub capacity_bytes: u64,
    /// Those of them that are free.
    pub available_bytes: u64,
    /// Inodes of the file system.
    pub inodes: u64,
    /// Those of them that are free.
    pub inodes_free: u64,
}

/// One network interface of the guest, its counters since the boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkInterface {
    /// Its name: "eth0".
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Of which were broken.
    pub rx_errors: u64,
    /// Of which were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Of which could not be.
    pub tx_errors: u64,
    /// Of which were dropped.
    pub tx_dropped: u64,
}

impl From<proto::Usage> for Usage {
    fn from(usage: proto::Usage) -> Self {
        Self {
            cpu: usage.cpu.map(Into::into).unwrap_or_default(),
            memory: usage.memory.map(Into::into).unwrap_or_default(),
            io: usage.io.map(Into::into).unwrap_or_default(),
            processes: usage.processes,
            threads: usage.threads,
            threads_max: usage.threads_max,
            file_descriptors: usage.file_descriptors,
            sockets: usage.sockets,
            file_system: usage.file_system.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<proto::CpuUsage> for CpuUsage {
    fn from(cpu: proto::CpuUsage) -> Self {
        Self {
            total_ns: cpu.total_ns,
            user_ns: cpu.user_ns,
            system_ns: cpu.system_ns,
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_ns: cpu.throttled_ns,
            pressure: cpu.pressure.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<proto::MemoryUsage> for MemoryUsage {
    fn from(memory: proto::MemoryUsage) -> Self {
        Self {
            current: memory.current,
            peak: memory.peak,
            limit: memory.limit,
            anonymous: memory.anonymous,
            file: memory.file,
            inactive_file: memory.inactive_file,
            active_file: memory.active_file,
            mapped_file: memory.mapped_file,
            kernel: memory.kernel,
            shared: memory.shared,
            page_faults: memory.page_faults,
            major_page_faults: memory.major_page_faults,
            oom_kills: memory.oom_kills,
            limit_hits: memory.limit_hits,
            pressure: memory.pressure.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<proto::IoUsage> for IoUsage {
    fn from(io: proto::IoUsage) -> Self {
        let devices = io.devices.into_iter().take(MAX_ITEMS);
        Self {
            devices: devices.map(Into::into).collect(),
            pressure: io.pressure.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<proto::DeviceIo> for DeviceIo {
    fn from(device: proto::DeviceIo) -> Self {
        Self {
            major: device.major,
            minor: device.minor,
            read_bytes: device.read_bytes,
            write_bytes: device.write_bytes,
            reads: device.reads,
            writes: device.writes,
            discards: device.discards,
            discarded_bytes: device.discarded_bytes,
        }
    }
}

impl From<proto::Pressure> for Pressure {
    fn from(pressure: proto::Pressure) -> Self {
        Self {
            some: pressure.some.map(Into::into).unwrap_or_default(),
            full: pressure.full.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<proto::Stall> for Stall {
    fn from(stall: proto::Stall) -> Self {
        Self {
            total_us: stall.total_us,
            avg10: percent(stall.avg10),
            avg60: percent(stall.avg60),
            avg300: percent(stall.avg300),
        }
    }
}

/// A share of time that can be; 0 for what is no number.
fn percent(value: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, 100.0)
    }
}

impl From<proto::FileSystemUsage> for FileSystemUsage {
    fn from(usage: proto::FileSystemUsage) -> Self {
        Self {
            used_bytes: usage.used_bytes.min(usage.capacity_bytes),
            used_inodes: usage.used_inodes.min(usage.inodes),
            capacity_bytes: usage.capacity_bytes,
            available_bytes: usage.available_bytes.min(usage.capacity_bytes),
            inodes: usage.inodes,
            inodes_free: usage.inodes_free.min(usage.inodes),
        }
    }
}

impl From<proto::NetworkInterface> for NetworkInterface {
    fn from(interface: proto::NetworkInterface) -> Self {
        Self {
            name: printable(&interface.name).chars().take(MAX_NAME).collect(),
            rx_bytes: interface.rx_bytes,
            rx_packets: interface.rx_packets,
            rx_errors: interface.rx_errors,
            rx_dropped: interface.rx_dropped,
            tx_bytes: interface.tx_bytes,
            tx_packets: interface.tx_packets,
            tx_errors: interface.tx_errors,
            tx_dropped: interface.tx_dropped,
        }
    }
}

/// The guest's interfaces, not more than can be.
pub(crate) fn interfaces(from: Vec<proto::NetworkInterface>) -> Vec<NetworkInterface> {
    from.into_iter().take(MAX_ITEMS).map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_figures_are_clamped() {
        let stall = Stall::from(proto::Stall {
            total_us: u64::MAX,
            avg10: f64::NAN,
            avg60: f64::INFINITY,
            avg300: -1.0,
        });
        assert_eq!((stall.avg10, stall.avg60, stall.avg300), (0.0, 100.0, 0.0));
        let file_system = FileSystemUsage::from(proto::FileSystemUsage {
            used_bytes: u64::MAX,
            available_bytes: 99,
            capacity_bytes: 10,
            ..Default::default()
        });
        assert_eq!(
            (file_system.used_bytes, file_system.available_bytes),
            (10, 10)
        );
    }

    #[test]
    fn lists_and_names_are_bounded() {
        let interface = proto::NetworkInterface {
            name: "eth0\n\u{1b}[31m0123456789".repeat(100),
            ..Default::default()
        };
        let taken = interfaces(vec![interface; 1000]);
        assert_eq!(taken.len(), MAX_ITEMS);
        assert_eq!(taken[0].name, "eth0  [31m01234");
        let io = IoUsage::from(proto::IoUsage {
            devices: vec![proto::DeviceIo::default(); 1000],
            pressure: None,
        });
        assert_eq!(io.devices.len(), MAX_ITEMS);
    }
}
