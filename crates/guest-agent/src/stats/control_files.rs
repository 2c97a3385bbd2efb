//! Figures of a cgroup's control files (Documentation/admin-guide/cgroup-v2.rst).

use crate::cgroup::{Cgroup, flat_key};
use guest_api::proto::{CpuUsage, DeviceIo, IoUsage, MemoryUsage, Pressure, Stall};

/// Most devices of one cgroup in an answer.
const MAX_DEVICES: usize = 32;

/// A file of one number; 0 of "max".
pub(super) fn limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(0),
        number => number.parse().ok(),
    }
}

/// cpu.stat and cpu.pressure; `None` where the kernel keeps no account.
pub(super) fn cpu(cgroup: &Cgroup) -> Option<CpuUsage> {
    let stat = cgroup.read("cpu.stat")?;
    let us = |key: &str| flat_key(&stat, key).unwrap_or(0);
    let ns = |key: &str| us(key).saturating_mul(1000);
    Some(CpuUsage {
        total_ns: ns("usage_usec"),
        user_ns: ns("user_usec"),
        system_ns: ns("system_usec"),
        periods: us("nr_periods"),
        throttled_periods: us("nr_throttled"),
        throttled_ns: ns("throttled_usec"),
        pressure: pressure_of(cgroup, "cpu.pressure"),
    })
}

/// The memory controller's files; `None` without the controller.
pub(super) fn memory(cgroup: &Cgroup) -> Option<MemoryUsage> {
    let number = |file: &str| limit(&cgroup.read(file)?);
    let current = number("memory.current")?;
    let stat = cgroup.read("memory.stat").unwrap_or_default();
    let events = cgroup.read("memory.events").unwrap_or_default();
    let of = |key: &str| flat_key(&stat, key).unwrap_or(0);
    Some(MemoryUsage {
        current,
        peak: number("memory.peak").unwrap_or(0),
        limit: number("memory.max").unwrap_or(0),
        anonymous: of("anon"),
        file: of("file"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        mapped_file: of("file_mapped"),
        kernel: of("kernel"),
        shared: of("shmem"),
        page_faults: of("pgfault"),
        major_page_faults: of("pgmajfault"),
        oom_kills: flat_key(&events, "oom_kill").unwrap_or(0),
        limit_hits: flat_key(&events, "max").unwrap_or(0),
        pressure: pressure_of(cgroup, "memory.pressure"),
    })
}

/// io.stat and io.pressure; `None` without the controller.
pub(super) fn io(cgroup: &Cgroup) -> Option<IoUsage> {
    let stat = cgroup.read("io.stat")?;
    Some(IoUsage {
        devices: stat.lines().filter_map(device).take(MAX_DEVICES).collect(),
        pressure: pressure_of(cgroup, "io.pressure"),
    })
}

/// "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6"
fn device(line: &str) -> Option<DeviceIo> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut device = DeviceIo {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..DeviceIo::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let to = match key {
            "rbytes" => &mut device.read_bytes,
            "wbytes" => &mut device.write_bytes,
            "rios" => &mut device.reads,
            "wios" => &mut device.writes,
            "dbytes" => &mut device.discarded_bytes,
            "dios" => &mut device.discards,
            _ => continue,
        };
        *to = value.parse().unwrap_or(0);
    }
    Some(device)
}

/// "12.34", with two digits always. (The standard library's parser would cost
/// every guest 16 KiB.)
fn percent(text: &str) -> f64 {
    let number = text.split_once('.').and_then(|(whole, rest)| {
        let rest = (rest.len() == 2).then_some(rest)?;
        let (whole, rest) = (whole.parse::<u16>().ok()?, rest.parse::<u8>().ok()?);
        Some(f64::from(whole) + f64::from(rest) / 100.0)
    });
    number.unwrap_or(0.0)
}

fn pressure_of(cgroup: &Cgroup, file: &str) -> Option<Pressure> {
    pressure(&cgroup.read(file)?)
}

/// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", then the same of "full".
fn pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| {
        let mut lines = text.lines().map(str::split_whitespace);
        let words = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words))?;
        let mut stall = Stall::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => stall.avg10 = percent(value),
                "avg60" => stall.avg60 = percent(value),
                "avg300" => stall.avg300 = percent(value),
                "total" => stall.total_us = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        Some(stall)
    };
    let pressure = Pressure {
        some: line("some"),
        full: line("full"),
    };
    (pressure.some.is_some() || pressure.full.is_some()).then_some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn every_figure_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 10\nuser_usec 7\nsystem_usec 3\nnr_periods 5\nnr_throttled 2\n\
                 throttled_usec 4\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.20 avg300=0.03 total=99\nfull avg10=0.00 total=1\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.max", "max\n"),
            (
                "memory.stat",
                "anon 1\nfile 2\nkernel 3\nshmem 4\nfile_mapped 5\ninactive_file 6\n\
                 active_file 7\npgfault 8\npgmajfault 9\n",
            ),
            ("memory.events", "max 3\noom 2\noom_kill 1\n"),
            (
                "io.stat",
                "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nbad\n",
            ),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup::at(dir.path().to_str().unwrap().to_owned());
        let cpu = cpu(&cgroup).unwrap();
        assert_eq!(
            (cpu.total_ns, cpu.user_ns, cpu.system_ns),
            (10_000, 7000, 3000)
        );
        assert_eq!(
            (cpu.periods, cpu.throttled_periods, cpu.throttled_ns),
            (5, 2, 4000)
        );
        let pressure = cpu.pressure.unwrap();
        let some = pressure.some.unwrap();
        assert!((some.avg10 - 1.5).abs() < 1e-9 && (some.avg300 - 0.03).abs() < 1e-9);
        assert_eq!((some.total_us, pressure.full.unwrap().total_us), (99, 1));
        let memory = memory(&cgroup).unwrap();
        assert_eq!((memory.current, memory.peak, memory.limit), (4096, 8192, 0));
        assert_eq!((memory.anonymous, memory.file, memory.kernel), (1, 2, 3));
        assert_eq!((memory.shared, memory.mapped_file), (4, 5));
        assert_eq!((memory.inactive_file, memory.active_file), (6, 7));
        assert_eq!((memory.page_faults, memory.major_page_faults), (8, 9));
        assert_eq!((memory.oom_kills, memory.limit_hits), (1, 3));
        assert!(memory.pressure.is_none());
        let io = io(&cgroup).unwrap();
        let want = DeviceIo {
            major: 254,
            minor: 0,
            read_bytes: 1,
            write_bytes: 2,
            reads: 3,
            writes: 4,
            discards: 6,
            discarded_bytes: 5,
        };
        assert_eq!(io.devices, [want]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,120}", words in "([a-z0-9:= .]{0,30}\n){0,4}") {
            let _ = (pressure(&text), pressure(&words), limit(&text));
            for line in words.lines() {
                let _ = device(line);
            }
        }
    }
}
