//! Metrics and their descriptors, made from the table in `rows`.

mod rows;

use cri_api::v1::{LinuxContainerResources, Metric, MetricDescriptor, MetricType, UInt64Value};
use rows::TABLE;
use sandbox::ContainerSpec;
use sandbox::usage::{DeviceIo, FileSystemUsage, NetworkInterface, Usage};

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
    value: Value,
}

/// Where a metric's values come from.
enum Value {
    /// One value.
    One(fn(&Of<'_>) -> u64),
    /// One value of containers only, if they have it.
    Container(fn(&ContainerSpec, &LinuxContainerResources) -> Option<u64>),
    /// One value of the writable layer; the device is the guest's scratch disk.
    Layer(fn(&FileSystemUsage) -> u64),
    /// One value for each block device.
    Device(fn(&DeviceIo) -> u64),
    /// One value for each interface of a pod.
    Interface(fn(&NetworkInterface) -> u64),
    /// Values with further labels of these keys.
    Labelled(&'static [&'static str], fn(&Of<'_>) -> Values),
}

impl Value {
    /// Further label keys.
    fn labels(&self) -> &'static [&'static str] {
        match self {
            Self::One(_) | Self::Container(_) => &[],
            Self::Layer(_) | Self::Device(_) => &["device"],
            Self::Interface(_) => &["interface"],
            Self::Labelled(labels, _) => labels,
        }
    }

    fn get(&self, of: &Of<'_>) -> Values {
        let one = |value| (Vec::new(), value);
        match self {
            Self::One(get) => vec![one(get(of))],
            Self::Container(get) => {
                let value = of.container.and_then(|(spec, limits)| get(spec, limits));
                value.map(one).into_iter().collect()
            }
            Self::Layer(get) => vec![(vec!["scratch".to_owned()], get(&of.usage.file_system))],
            Self::Device(get) => {
                let devices = of.usage.io.devices.iter();
                devices.map(|d| (vec![device_name(d)], get(d))).collect()
            }
            Self::Interface(get) => {
                let interfaces = of.interfaces.iter();
                interfaces.map(|i| (vec![i.name.clone()], get(i))).collect()
            }
            Self::Labelled(_, get) => get(of),
        }
    }
}

/// The descriptors of all metrics; always the same.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    let row = |row: &Row| MetricDescriptor {
        name: row.name.to_owned(),
        help: row.help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(row.value.labels())
            .map(|label| (*label).to_owned())
            .collect(),
    };
    TABLE.iter().map(row).collect()
}

/// All metrics that there are values for.
pub(crate) fn metrics(of: &Of<'_>) -> Vec<Metric> {
    let of_row = |row: &Row| {
        let values = row.value.get(of).into_iter();
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

const fn counter(name: &'static str, help: &'static str, value: Value) -> Row {
    Row {
        name,
        help,
        kind: MetricType::Counter,
        value,
    }
}

const fn gauge(name: &'static str, help: &'static str, value: Value) -> Row {
    Row {
        name,
        help,
        kind: MetricType::Gauge,
        value,
    }
}

fn device_name(device: &DeviceIo) -> String {
    format!("{}:{}", device.major, device.minor)
}

#[cfg(test)]
mod tests;
