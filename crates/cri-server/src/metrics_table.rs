//! All metrics: name, help, labels and where the value comes from, in one table.
//! Names, labels and meanings are cAdvisor's, which monitoring is built on; the
//! CRI carries whole numbers, so seconds are whole ones.

use crate::stats_convert::working_set;
use cri_api::v1::{LinuxContainerResources, Metric, MetricDescriptor, MetricType, UInt64Value};
use sandbox::ContainerSpec;
use sandbox::usage::{DeviceIo, NetworkInterface, Pressure, Usage};

/// Label keys of every metric; a pod's own metrics have an empty container and
/// image.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;

/// What metrics are made of: a container's figures, or a pod's.
pub(crate) struct Of<'a> {
    /// Values of [`LABELS`].
    pub(crate) labels: [String; 6],
    pub(crate) usage: &'a Usage,
    /// When the figures were read, in nanoseconds since the epoch.
    pub(crate) at_ns: i64,
    pub(crate) started_at_ns: i64,
    /// CPU time; of a pod with its VM's.
    pub(crate) cpu_ns: u64,
    /// Memory of the VM besides its containers'; 0 of a container.
    pub(crate) overhead_bytes: u64,
    /// A container's specification and its limits in force; `None` of a pod.
    pub(crate) container: Option<(&'a ContainerSpec, &'a LinuxContainerResources)>,
    /// A pod's interfaces.
    pub(crate) interfaces: Vec<&'a NetworkInterface>,
}

/// Values with those of the metric's further labels.
type Values = Vec<(Vec<String>, u64)>;

struct Row {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// Further label keys.
    labels: &'static [&'static str],
    values: fn(&Of<'_>) -> Values,
}

/// The descriptors of all metrics; always the same.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    let row = |row: &Row| MetricDescriptor {
        name: row.name.to_owned(),
        help: row.help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(row.labels)
            .map(|label| (*label).to_owned())
            .collect(),
    };
    TABLE.iter().map(row).collect()
}

/// All metrics that there are values for.
pub(crate) fn metrics(of: &Of<'_>) -> Vec<Metric> {
    let of_row = |row: &Row| {
        let values = (row.values)(of).into_iter();
        let metric = |(labels, value)| Metric {
            name: row.name.to_owned(),
            timestamp: of.at_ns,
            metric_type: row.kind.into(),
            label_values: of.labels.iter().cloned().chain(labels).collect(),
            value: Some(UInt64Value { value }),
        };
        values.map(metric).collect::<Vec<_>>()
    };
    TABLE.iter().flat_map(of_row).collect()
}

const fn counter(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    values: fn(&Of<'_>) -> Values,
) -> Row {
    Row {
        name,
        help,
        kind: MetricType::Counter,
        labels,
        values,
    }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    values: fn(&Of<'_>) -> Values,
) -> Row {
    Row {
        name,
        help,
        kind: MetricType::Gauge,
        labels,
        values,
    }
}

fn one(value: u64) -> Values {
    vec![(Vec::new(), value)]
}

fn labelled(label: &str, value: u64) -> Values {
    vec![(vec![label.to_owned()], value)]
}

/// Of containers only.
fn of_container(of: &Of<'_>, value: u64) -> Values {
    match of.container {
        Some(_) => one(value),
        None => Vec::new(),
    }
}

/// A limit of the request; nothing where it has none.
fn limit(of: &Of<'_>, get: fn(&LinuxContainerResources) -> i64) -> Values {
    let limit = of.container.map(|(_, limits)| get(limits));
    match limit.map(u64::try_from) {
        Some(Ok(value)) if value > 0 => one(value),
        _ => Vec::new(),
    }
}

/// A limit of the request; 0 where it has none.
fn limit_or_zero(of: &Of<'_>, get: fn(&LinuxContainerResources) -> i64) -> Values {
    let found = limit(of, get);
    if found.is_empty() {
        return of_container(of, 0);
    }
    found
}

fn devices(of: &Of<'_>, get: fn(&DeviceIo) -> u64) -> Values {
    let devices = of.usage.io.devices.iter();
    devices
        .map(|device| (vec![device_name(device)], get(device)))
        .collect()
}

fn device_name(device: &DeviceIo) -> String {
    format!("{}:{}", device.major, device.minor)
}

fn operations(of: &Of<'_>) -> Values {
    let device = |device: &DeviceIo| {
        let rows = [
            ("Read", device.read_bytes),
            ("Write", device.write_bytes),
            ("Discard", device.discarded_bytes),
        ];
        let labels = [
            device_name(device),
            device.major.to_string(),
            device.minor.to_string(),
        ];
        rows.map(|(operation, bytes)| {
            let labels = labels.iter().cloned().chain([operation.to_owned()]);
            (labels.collect(), bytes)
        })
    };
    of.usage.io.devices.iter().flat_map(device).collect()
}

/// Figures of the writable layer; the device is the guest's scratch disk.
fn layer(value: u64) -> Values {
    labelled("scratch", value)
}

fn network(of: &Of<'_>, get: fn(&NetworkInterface) -> u64) -> Values {
    let interfaces = of.interfaces.iter();
    interfaces
        .map(|interface| (vec![interface.name.clone()], get(interface)))
        .collect()
}

fn waiting(pressure: &Pressure) -> Values {
    one(pressure.some.total_us / MICROS)
}

fn stalled(pressure: &Pressure) -> Values {
    one(pressure.full.total_us / MICROS)
}

fn failures(of: &Of<'_>) -> Values {
    let memory = &of.usage.memory;
    let row = |kind: &str, value| (vec![kind.to_owned(), "container".to_owned()], value);
    vec![
        row("pgfault", memory.page_faults),
        row("pgmajfault", memory.major_page_faults),
    ]
}

/// Soft limits that the container asked for, as cAdvisor names them.
fn ulimits(of: &Of<'_>) -> Values {
    let limits = of
        .container
        .iter()
        .flat_map(|(spec, _)| &spec.process.rlimits);
    limits
        .map(|limit| {
            let name = match limit.kind.as_str() {
                "RLIMIT_NOFILE" => "max_open_files".to_owned(),
                other => other.trim_start_matches("RLIMIT_").to_lowercase(),
            };
            (vec![name], limit.soft)
        })
        .collect()
}

fn seconds_of(time_ns: i64) -> u64 {
    u64::try_from(time_ns).unwrap_or(0) / NANOS
}

static TABLE: [Row; 56] = [
    counter(
        "container_blkio_device_usage_total",
        "Bytes moved to and from block devices",
        &["device", "major", "minor", "operation"],
        operations,
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Elapsed periods of the CPU limit",
        &[],
        |of| one(of.usage.cpu.periods),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU limit was reached",
        &[],
        |of| one(of.usage.cpu.throttled_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time held back by the CPU limit, in seconds",
        &[],
        |of| one(of.usage.cpu.throttled_ns / NANOS),
    ),
    counter(
        "container_cpu_system_seconds_total",
        "CPU time in kernel mode, in seconds",
        &[],
        |of| one(of.usage.cpu.system_ns / NANOS),
    ),
    counter(
        "container_cpu_usage_seconds_total",
        "CPU time, in seconds; of a pod with its virtual machine's",
        &["cpu"],
        |of| labelled("total", of.cpu_ns / NANOS),
    ),
    counter(
        "container_cpu_user_seconds_total",
        "CPU time in user mode, in seconds",
        &[],
        |of| one(of.usage.cpu.user_ns / NANOS),
    ),
    gauge(
        "container_file_descriptors",
        "Open file descriptors",
        &[],
        |of| one(of.usage.file_descriptors),
    ),
    gauge(
        "container_fs_inodes_free",
        "Free inodes of the file system",
        &["device"],
        |of| layer(of.usage.file_system.inodes_free),
    ),
    gauge(
        "container_fs_inodes_total",
        "Inodes of the file system",
        &["device"],
        |of| layer(of.usage.file_system.inodes),
    ),
    gauge(
        "container_fs_limit_bytes",
        "Bytes that the container can use on the file system",
        &["device"],
        |of| layer(of.usage.file_system.capacity_bytes),
    ),
    counter(
        "container_fs_reads_bytes_total",
        "Bytes read",
        &["device"],
        |of| devices(of, |device| device.read_bytes),
    ),
    counter(
        "container_fs_reads_total",
        "Reads completed",
        &["device"],
        |of| devices(of, |device| device.reads),
    ),
    gauge(
        "container_fs_usage_bytes",
        "Bytes of the writable layer",
        &["device"],
        |of| layer(of.usage.file_system.used_bytes),
    ),
    counter(
        "container_fs_writes_bytes_total",
        "Bytes written",
        &["device"],
        |of| devices(of, |device| device.write_bytes),
    ),
    counter(
        "container_fs_writes_total",
        "Writes completed",
        &["device"],
        |of| devices(of, |device| device.writes),
    ),
    // Guests have no huge pages set aside.
    gauge(
        "container_hugetlb_max_usage_bytes",
        "Most huge page memory that was in use, in bytes",
        &["pagesize"],
        |_| labelled("2MB", 0),
    ),
    gauge(
        "container_hugetlb_usage_bytes",
        "Huge page memory in use, in bytes",
        &["pagesize"],
        |_| labelled("2MB", 0),
    ),
    gauge(
        "container_last_seen",
        "When the container was last seen, in seconds since the epoch",
        &[],
        |of| one(seconds_of(of.at_ns)),
    ),
    gauge(
        "container_memory_cache",
        "Page cache, in bytes",
        &[],
        |of| one(of.usage.memory.file),
    ),
    counter(
        "container_memory_failcnt",
        "How often the memory limit was reached",
        &[],
        |of| one(of.usage.memory.limit_hits),
    ),
    counter(
        "container_memory_failures_total",
        "Page faults",
        &["failure_type", "scope"],
        failures,
    ),
    gauge(
        "container_memory_kernel_usage",
        "Memory of the kernel for the container, in bytes",
        &[],
        |of| one(of.usage.memory.kernel),
    ),
    gauge(
        "container_memory_mapped_file",
        "Mapped files, in bytes",
        &[],
        |of| one(of.usage.memory.mapped_file),
    ),
    gauge(
        "container_memory_max_usage_bytes",
        "Most memory that was in use, in bytes",
        &[],
        |of| one(of.usage.memory.peak),
    ),
    gauge(
        "container_memory_rss",
        "Anonymous memory, in bytes; of a pod with its virtual machine's overhead",
        &[],
        |of| one(of.usage.memory.anonymous.saturating_add(of.overhead_bytes)),
    ),
    // Guests have no swap.
    gauge(
        "container_memory_swap",
        "Swap in use, in bytes",
        &[],
        |_| one(0),
    ),
    gauge(
        "container_memory_usage_bytes",
        "Memory in use, in bytes; of a pod with its virtual machine's overhead",
        &[],
        |of| one(of.usage.memory.current.saturating_add(of.overhead_bytes)),
    ),
    gauge(
        "container_memory_working_set_bytes",
        "Working set, in bytes; of a pod with its virtual machine's overhead",
        &[],
        |of| one(working_set(&of.usage.memory).saturating_add(of.overhead_bytes)),
    ),
    counter(
        "container_network_receive_bytes_total",
        "Bytes received",
        &["interface"],
        |of| network(of, |interface| interface.rx_bytes),
    ),
    counter(
        "container_network_receive_errors_total",
        "Errors while receiving",
        &["interface"],
        |of| network(of, |interface| interface.rx_errors),
    ),
    counter(
        "container_network_receive_packets_dropped_total",
        "Packets dropped while receiving",
        &["interface"],
        |of| network(of, |interface| interface.rx_dropped),
    ),
    counter(
        "container_network_receive_packets_total",
        "Packets received",
        &["interface"],
        |of| network(of, |interface| interface.rx_packets),
    ),
    counter(
        "container_network_transmit_bytes_total",
        "Bytes sent",
        &["interface"],
        |of| network(of, |interface| interface.tx_bytes),
    ),
    counter(
        "container_network_transmit_errors_total",
        "Errors while sending",
        &["interface"],
        |of| network(of, |interface| interface.tx_errors),
    ),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped while sending",
        &["interface"],
        |of| network(of, |interface| interface.tx_dropped),
    ),
    counter(
        "container_network_transmit_packets_total",
        "Packets sent",
        &["interface"],
        |of| network(of, |interface| interface.tx_packets),
    ),
    counter(
        "container_oom_events_total",
        "Processes that the OOM killer ended",
        &[],
        |of| one(of.usage.memory.oom_kills),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for a CPU, in seconds",
        &[],
        |of| stalled(&of.usage.cpu.pressure),
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some tasks waited for a CPU, in seconds",
        &[],
        |of| waiting(&of.usage.cpu.pressure),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for I/O, in seconds",
        &[],
        |of| stalled(&of.usage.io.pressure),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some tasks waited for I/O, in seconds",
        &[],
        |of| waiting(&of.usage.io.pressure),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory, in seconds",
        &[],
        |of| stalled(&of.usage.memory.pressure),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some tasks waited for memory, in seconds",
        &[],
        |of| waiting(&of.usage.memory.pressure),
    ),
    gauge("container_processes", "Processes", &[], |of| {
        one(of.usage.processes)
    }),
    gauge("container_sockets", "Open sockets", &[], |of| {
        one(of.usage.sockets)
    }),
    gauge(
        "container_spec_cpu_period",
        "Period of the CPU limit, in microseconds",
        &[],
        |of| limit(of, |limits| limits.cpu_period),
    ),
    gauge(
        "container_spec_cpu_quota",
        "CPU limit, in microseconds a period",
        &[],
        |of| limit(of, |limits| limits.cpu_quota),
    ),
    gauge("container_spec_cpu_shares", "CPU weight", &[], |of| {
        limit(of, |limits| limits.cpu_shares)
    }),
    gauge(
        "container_spec_memory_limit_bytes",
        "Memory limit, in bytes; 0: none",
        &[],
        |of| limit_or_zero(of, |limits| limits.memory_limit_in_bytes),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is reclaimed last, in bytes; 0: none",
        &[],
        |of| match of.container {
            Some((spec, _)) => one(spec.resources.memory_low),
            None => Vec::new(),
        },
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap, in bytes; 0: none",
        &[],
        |of| limit_or_zero(of, |limits| limits.memory_swap_limit_in_bytes),
    ),
    gauge(
        "container_start_time_seconds",
        "When the container started, in seconds since the epoch",
        &[],
        |of| one(seconds_of(of.started_at_ns)),
    ),
    gauge("container_threads", "Threads", &[], |of| {
        one(of.usage.threads)
    }),
    gauge(
        "container_threads_max",
        "Most threads that are allowed; 0: no limit",
        &[],
        |of| one(of.usage.threads_max),
    ),
    gauge(
        "container_ulimits_soft",
        "Soft limits of resources that the container asked for",
        &["ulimit"],
        ulimits,
    ),
];

#[cfg(test)]
mod tests;
