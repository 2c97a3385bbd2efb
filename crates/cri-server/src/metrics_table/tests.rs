use super::*;
use sandbox::usage::{CpuUsage, IoUsage, MemoryUsage};
use std::collections::BTreeSet;

fn usage() -> Usage {
    Usage {
        cpu: CpuUsage {
            total_ns: 3_700_000_000,
            ..CpuUsage::default()
        },
        memory: MemoryUsage {
            current: 100,
            inactive_file: 30,
            page_faults: 8,
            ..MemoryUsage::default()
        },
        io: IoUsage {
            devices: vec![DeviceIo {
                major: 254,
                minor: 16,
                read_bytes: 4096,
                ..DeviceIo::default()
            }],
            ..IoUsage::default()
        },
        ..Usage::default()
    }
}

fn of<'a>(usage: &'a Usage, interface: &'a NetworkInterface) -> Of<'a> {
    Of {
        labels: ["", "id", "", "id", "ns", "pod"].map(str::to_owned),
        usage,
        at_ns: 9_000_000_000,
        started_at_ns: 2_500_000_000,
        cpu_ns: usage.cpu.total_ns,
        overhead_bytes: 1000,
        container: None,
        interfaces: vec![interface],
    }
}

fn value(metrics: &[Metric], name: &str, label: &str) -> Option<u64> {
    let found = metrics
        .iter()
        .find(|m| m.name == name && m.label_values.iter().any(|l| l == label))?;
    found.value.as_ref().map(|v| v.value)
}

#[test]
fn every_metric_has_a_descriptor_with_as_many_labels() {
    let (usage, interface) = (usage(), NetworkInterface::default());
    let descriptors = descriptors();
    let names: BTreeSet<_> = descriptors.iter().map(|d| &d.name).collect();
    assert_eq!(names.len(), descriptors.len());
    assert!(descriptors.iter().all(|d| !d.help.is_empty()));
    for metric in metrics(&of(&usage, &interface)) {
        let found = descriptors.iter().find(|d| d.name == metric.name).unwrap();
        assert_eq!(
            found.label_keys.len(),
            metric.label_values.len(),
            "{}",
            metric.name
        );
    }
}

#[test]
fn values_come_from_the_figures_in_cadvisors_units() {
    let interface = NetworkInterface {
        name: "eth0".into(),
        rx_bytes: 77,
        ..NetworkInterface::default()
    };
    let usage = usage();
    let metrics = metrics(&of(&usage, &interface));
    for (name, label, expected) in [
        ("container_cpu_usage_seconds_total", "total", 3),
        ("container_memory_usage_bytes", "pod", 1100),
        ("container_memory_working_set_bytes", "pod", 1070),
        ("container_memory_failures_total", "pgfault", 8),
        ("container_fs_reads_bytes_total", "254:16", 4096),
        ("container_blkio_device_usage_total", "Read", 4096),
        ("container_network_receive_bytes_total", "eth0", 77),
        ("container_start_time_seconds", "pod", 2),
        ("container_last_seen", "pod", 9),
    ] {
        assert_eq!(value(&metrics, name, label), Some(expected), "{name}");
    }
    // What only a container has.
    assert_eq!(
        value(&metrics, "container_spec_memory_limit_bytes", "pod"),
        None
    );
}

#[test]
fn limits_are_the_requests() {
    let limits = LinuxContainerResources {
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    };
    let spec: ContainerSpec = serde_json::from_value(serde_json::json!({
        "name": "c", "attempt": 0, "image": "i", "log_path": "/l",
        "process": {"args": ["a"], "env": [], "cwd": "/", "user": "", "uid": null,
            "gid": null, "additional_gids": [], "capabilities": [],
            "rlimits": [{"kind": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
            "terminal": false, "stdin": false, "no_new_privileges": false,
            "oom_score_adj": 0},
    }))
    .unwrap();
    let (usage, interface) = (usage(), NetworkInterface::default());
    let mut of = of(&usage, &interface);
    of.container = Some((&spec, &limits));
    let metrics = metrics(&of);
    for (name, label, expected) in [
        ("container_spec_cpu_quota", "pod", Some(20_000)),
        ("container_spec_cpu_period", "pod", Some(100_000)),
        ("container_spec_cpu_shares", "pod", None),
        ("container_spec_memory_limit_bytes", "pod", Some(64 << 20)),
        ("container_spec_memory_swap_limit_bytes", "pod", Some(0)),
        ("container_ulimits_soft", "max_open_files", Some(1024)),
    ] {
        assert_eq!(value(&metrics, name, label), expected, "{name}");
    }
}
