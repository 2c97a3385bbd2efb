//! What a VMM process and its engine's child cost the host: from their cgroup
//! where it counts, otherwise from /proc.

use crate::cgroup::Cgroup;
use std::fs;
use std::path::Path;

const KIB: u64 = 1024;
const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_US: u64 = 1_000;

/// Costs of one VM on its host, guest included: the guest's memory is memory of
/// these processes, and its instructions are run by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory in bytes. What the VMM and QEMU share (the guest's memory)
    /// counts for both.
    pub rss_bytes: u64,
    /// Resident memory in bytes, shared pages counted by their share; 0 where the
    /// host does not tell.
    pub pss_bytes: u64,
    /// What the VM's cgroup is charged for in bytes, where it has one.
    pub cgroup_bytes: Option<u64>,
    /// Processes.
    pub processes: u32,
    /// Their threads.
    pub threads: u32,
}

/// Measures the VMM `pid` and the engine's child, `engine_pid`, if that is one.
/// Blocks for some milliseconds. What has ended counts as nothing.
pub fn host_usage(pid: u32, engine_pid: Option<u32>, cgroup: Option<&Cgroup>) -> HostUsage {
    let mut usage = HostUsage::default();
    let proc = Path::new("/proc");
    // A number that another process has by now has another parent.
    let child =
        engine_pid.filter(|child| Stat::read(proc, *child).is_some_and(|s| s.parent == pid));
    for pid in [Some(pid), child].into_iter().flatten() {
        usage.add(proc, pid);
    }
    if let Some(cgroup) = cgroup {
        usage.cgroup_bytes = cgroup.memory_bytes();
        // Also counts what has ended.
        usage.cpu_ns = cgroup
            .cpu_ns()
            .map_or(usage.cpu_ns, |ns| ns.max(usage.cpu_ns));
    }
    usage
}

impl HostUsage {
    fn add(&mut self, proc: &Path, pid: u32) {
        let Some(stat) = Stat::read(proc, pid) else {
            return;
        };
        let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
        self.cpu_ns += stat.ticks.saturating_mul(NS_PER_S / ticks_per_s);
        self.rss_bytes += stat
            .rss_pages
            .saturating_mul(rustix::param::page_size() as u64);
        let rollup = proc.join(pid.to_string()).join("smaps_rollup");
        let rollup = fs::read_to_string(rollup).unwrap_or_default();
        self.pss_bytes += field(&rollup, "Pss:").unwrap_or(0).saturating_mul(KIB);
        self.processes += 1;
        self.threads += stat.threads;
    }
}

/// The first number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Of proc(5) stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// In user and kernel mode.
    ticks: u64,
    threads: u32,
    rss_pages: u64,
}

impl Stat {
    fn read(proc: &Path, pid: u32) -> Option<Self> {
        let text = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name in front may hold spaces and parentheses.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `rest` begins with field 3.
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(4)?).ok()?,
            ticks: number(14)?.saturating_add(number(15)?),
            threads: u32::try_from(number(20)?).ok()?,
            rss_pages: number(24)?,
        })
    }
}

impl Cgroup {
    /// CPU time of all that ran in it, in nanoseconds.
    pub fn cpu_ns(&self) -> Option<u64> {
        self.dirs().iter().find_map(|dir| {
            let v1 = fs::read_to_string(dir.join("cpuacct.usage")).ok();
            let v1 = v1.and_then(|text| text.trim().parse().ok());
            v1.or_else(|| {
                let v2 = fs::read_to_string(dir.join("cpu.stat")).ok()?;
                Some(field(&v2, "usage_usec ")?.saturating_mul(NS_PER_US))
            })
        })
    }

    /// Most memory that it may be charged for, in bytes; `None` without a limit.
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        // Version 1 says a number that no machine has.
        self.memory_figure(["memory.max", "memory.limit_in_bytes"])
            .filter(|bytes| *bytes < 1 << 60)
    }

    /// Memory it is charged for, in bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_figure(["memory.current", "memory.usage_in_bytes"])
    }

    fn memory_figure(&self, files: [&str; 2]) -> Option<u64> {
        self.dirs().iter().find_map(|dir| {
            let mut texts = files.iter().map(|file| fs::read_to_string(dir.join(file)));
            texts.find_map(|text| text.ok()?.trim().parse().ok())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_behind_any_name() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = Stat::parse(&format!("12 (x) y z) S {}\n", fields.join(" "))).unwrap();
        let expected = Stat {
            parent: 4,
            ticks: 14 + 15,
            threads: 20,
            rss_pages: 24,
        };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse("12 (cut"), None);
        assert_eq!(Stat::parse("12 (cut) R 1 2"), None);
    }

    #[test]
    fn own_process_costs_something_and_a_stranger_is_not_counted() {
        let pid = std::process::id();
        let alone = host_usage(pid, Some(1), None);
        assert!(alone.rss_bytes > 0 && alone.threads > 0, "{alone:?}");
        assert_eq!(alone.processes, 1);
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let both = host_usage(pid, Some(child.id()), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(both.processes, 2);
    }

    #[test]
    fn ended_process_costs_nothing() {
        assert_eq!(host_usage(0x3fff_fff0, None, None), HostUsage::default());
    }

    #[test]
    fn cgroups_of_both_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for file in ["memory/cgroup.procs", "cpu/cgroup.procs"] {
            write(file, "");
        }
        let v1 = Cgroup::below(root, "s/p").unwrap();
        assert_eq!((v1.cpu_ns(), v1.memory_bytes()), (None, None));
        write("cpu/s/p/cpuacct.usage", "77\n");
        write("memory/s/p/memory.usage_in_bytes", "4096\n");
        assert_eq!((v1.cpu_ns(), v1.memory_bytes()), (Some(77), Some(4096)));
        write("memory/s/p/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(v1.memory_limit_bytes(), None);
        write("memory/s/p/memory.limit_in_bytes", "65536\n");
        assert_eq!(v1.memory_limit_bytes(), Some(65536));

        write("cgroup.controllers", "");
        let v2 = Cgroup::below(root, "s/p").unwrap();
        write("s/p/cpu.stat", "usage_usec 5\nuser_usec 4\n");
        write("s/p/memory.current", "8192\n");
        assert_eq!((v2.cpu_ns(), v2.memory_bytes()), (Some(5000), Some(8192)));
        write("s/p/memory.max", "max\n");
        assert_eq!(v2.memory_limit_bytes(), None);
        write("s/p/memory.max", "65536\n");
        assert_eq!(v2.memory_limit_bytes(), Some(65536));
    }
}
