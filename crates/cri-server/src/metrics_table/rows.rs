//! The table of all metrics. Names, labels and meanings are cAdvisor's, which
//! monitoring is built on; the CRI carries whole numbers, so seconds are whole ones.

use super::Value::{Container, Device, Interface, Labelled, Layer, One};
use super::{MICROS, NANOS, Of, Row, Values, counter, device_name, gauge};
use crate::stats_convert::working_set;
use sandbox::usage::{DeviceIo, Pressure};

pub(super) static TABLE: [Row; 56] = [
    counter(
        "container_blkio_device_usage_total",
        "Bytes moved to and from block devices",
        Labelled(&["device", "major", "minor", "operation"], operations),
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Elapsed periods of the CPU limit",
        One(|of| of.usage.cpu.periods),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU limit was reached",
        One(|of| of.usage.cpu.throttled_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time held back by the CPU limit, in seconds",
        One(|of| of.usage.cpu.throttled_ns / NANOS),
    ),
    counter(
        "container_cpu_system_seconds_total",
        "CPU time in kernel mode, in seconds",
        One(|of| of.usage.cpu.system_ns / NANOS),
    ),
    counter(
        "container_cpu_usage_seconds_total",
        "CPU time, in seconds; of a pod with its virtual machine's",
        Labelled(&["cpu"], |of| labelled("total", of.cpu_ns / NANOS)),
    ),
    counter(
        "container_cpu_user_seconds_total",
        "CPU time in user mode, in seconds",
        One(|of| of.usage.cpu.user_ns / NANOS),
    ),
    gauge(
        "container_file_descriptors",
        "Open file descriptors",
        One(|of| of.usage.file_descriptors),
    ),
    gauge(
        "container_fs_inodes_free",
        "Free inodes of the file system",
        Layer(|layer| layer.inodes_free),
    ),
    gauge(
        "container_fs_inodes_total",
        "Inodes of the file system",
        Layer(|layer| layer.inodes),
    ),
    gauge(
        "container_fs_limit_bytes",
        "Bytes that the container can use on the file system",
        Layer(|layer| layer.capacity_bytes),
    ),
    counter(
        "container_fs_reads_bytes_total",
        "Bytes read",
        Device(|device| device.read_bytes),
    ),
    counter(
        "container_fs_reads_total",
        "Reads completed",
        Device(|device| device.reads),
    ),
    gauge(
        "container_fs_usage_bytes",
        "Bytes of the writable layer",
        Layer(|layer| layer.used_bytes),
    ),
    counter(
        "container_fs_writes_bytes_total",
        "Bytes written",
        Device(|device| device.write_bytes),
    ),
    counter(
        "container_fs_writes_total",
        "Writes completed",
        Device(|device| device.writes),
    ),
    // Guests have no huge pages set aside.
    gauge(
        "container_hugetlb_max_usage_bytes",
        "Most huge page memory that was in use, in bytes",
        Labelled(&["pagesize"], |_| labelled("2MB", 0)),
    ),
    gauge(
        "container_hugetlb_usage_bytes",
        "Huge page memory in use, in bytes",
        Labelled(&["pagesize"], |_| labelled("2MB", 0)),
    ),
    gauge(
        "container_last_seen",
        "When the container was last seen, in seconds since the epoch",
        One(|of| seconds_of(of.at_ns)),
    ),
    gauge(
        "container_memory_cache",
        "Page cache, in bytes",
        One(|of| of.usage.memory.file),
    ),
    counter(
        "container_memory_failcnt",
        "How often the memory limit was reached",
        One(|of| of.usage.memory.limit_hits),
    ),
    counter(
        "container_memory_failures_total",
        "Page faults",
        Labelled(&["failure_type", "scope"], failures),
    ),
    gauge(
        "container_memory_kernel_usage",
        "Memory of the kernel for the container, in bytes",
        One(|of| of.usage.memory.kernel),
    ),
    gauge(
        "container_memory_mapped_file",
        "Mapped files, in bytes",
        One(|of| of.usage.memory.mapped_file),
    ),
    gauge(
        "container_memory_max_usage_bytes",
        "Most memory that was in use, in bytes",
        One(|of| of.usage.memory.peak),
    ),
    gauge(
        "container_memory_rss",
        "Anonymous memory, in bytes; of a pod with its virtual machine's overhead",
        One(|of| of.usage.memory.anonymous.saturating_add(of.overhead_bytes)),
    ),
    // Guests have no swap.
    gauge("container_memory_swap", "Swap in use, in bytes", One(|_| 0)),
    gauge(
        "container_memory_usage_bytes",
        "Memory in use, in bytes; of a pod with its virtual machine's overhead",
        One(|of| of.usage.memory.current.saturating_add(of.overhead_bytes)),
    ),
    gauge(
        "container_memory_working_set_bytes",
        "Working set, in bytes; of a pod with its virtual machine's overhead",
        One(|of| working_set(&of.usage.memory).saturating_add(of.overhead_bytes)),
    ),
    counter(
        "container_network_receive_bytes_total",
        "Bytes received",
        Interface(|interface| interface.rx_bytes),
    ),
    counter(
        "container_network_receive_errors_total",
        "Errors while receiving",
        Interface(|interface| interface.rx_errors),
    ),
    counter(
        "container_network_receive_packets_dropped_total",
        "Packets dropped while receiving",
        Interface(|interface| interface.rx_dropped),
    ),
    counter(
        "container_network_receive_packets_total",
        "Packets received",
        Interface(|interface| interface.rx_packets),
    ),
    counter(
        "container_network_transmit_bytes_total",
        "Bytes sent",
        Interface(|interface| interface.tx_bytes),
    ),
    counter(
        "container_network_transmit_errors_total",
        "Errors while sending",
        Interface(|interface| interface.tx_errors),
    ),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped while sending",
        Interface(|interface| interface.tx_dropped),
    ),
    counter(
        "container_network_transmit_packets_total",
        "Packets sent",
        Interface(|interface| interface.tx_packets),
    ),
    counter(
        "container_oom_events_total",
        "Processes that the OOM killer ended",
        One(|of| of.usage.memory.oom_kills),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for a CPU, in seconds",
        One(|of| stalled(&of.usage.cpu.pressure)),
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some tasks waited for a CPU, in seconds",
        One(|of| waiting(&of.usage.cpu.pressure)),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for I/O, in seconds",
        One(|of| stalled(&of.usage.io.pressure)),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some tasks waited for I/O, in seconds",
        One(|of| waiting(&of.usage.io.pressure)),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory, in seconds",
        One(|of| stalled(&of.usage.memory.pressure)),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some tasks waited for memory, in seconds",
        One(|of| waiting(&of.usage.memory.pressure)),
    ),
    gauge(
        "container_processes",
        "Processes",
        One(|of| of.usage.processes),
    ),
    gauge(
        "container_sockets",
        "Open sockets",
        One(|of| of.usage.sockets),
    ),
    gauge(
        "container_spec_cpu_period",
        "Period of the CPU limit, in microseconds",
        Container(|_, limits| set(limits.cpu_period)),
    ),
    gauge(
        "container_spec_cpu_quota",
        "CPU limit, in microseconds a period",
        Container(|_, limits| set(limits.cpu_quota)),
    ),
    gauge(
        "container_spec_cpu_shares",
        "CPU weight",
        Container(|_, limits| set(limits.cpu_shares)),
    ),
    gauge(
        "container_spec_memory_limit_bytes",
        "Memory limit, in bytes; 0: none",
        Container(|_, limits| set(limits.memory_limit_in_bytes).or(Some(0))),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is reclaimed last, in bytes; 0: none",
        Container(|spec, _| Some(spec.resources.memory_low)),
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap, in bytes; 0: none",
        Container(|_, limits| set(limits.memory_swap_limit_in_bytes).or(Some(0))),
    ),
    gauge(
        "container_start_time_seconds",
        "When the container started, in seconds since the epoch",
        One(|of| seconds_of(of.started_at_ns)),
    ),
    gauge("container_threads", "Threads", One(|of| of.usage.threads)),
    gauge(
        "container_threads_max",
        "Most threads that are allowed; 0: no limit",
        One(|of| of.usage.threads_max),
    ),
    gauge(
        "container_ulimits_soft",
        "Soft limits of resources that the container asked for",
        Labelled(&["ulimit"], ulimits),
    ),
];

fn labelled(label: &str, value: u64) -> Values {
    vec![(vec![label.to_owned()], value)]
}

/// A limit of a request; 0 and less: none.
fn set(limit: i64) -> Option<u64> {
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

fn waiting(pressure: &Pressure) -> u64 {
    pressure.some.total_us / MICROS
}

fn stalled(pressure: &Pressure) -> u64 {
    pressure.full.total_us / MICROS
}

fn seconds_of(time_ns: i64) -> u64 {
    u64::try_from(time_ns).unwrap_or(0) / NANOS
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
