//! Limits as control files: what a request asks for, checked, and its way into
//! the kernel.
//!
//! A change that fails leaves the limits as they were. Memory below what is in
//! use is refused after the kernel had its chance to reclaim: writing it would
//! make the kernel kill instead.

use super::{Cgroup, flat_key};
use crate::error::{AgentError, Doing};
use guest_api::proto::Resources;
use rustix::io::Errno;
use std::fs;

/// Controllers whose files `unified` may name.
const CONTROLLERS: [&str; 7] = ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids"];
/// Longest name and value of a `unified` entry, in bytes.
const MAX_NAME: usize = 64;
const MAX_VALUE: usize = 4096;

/// Files of the fields that have one, and what a cgroup without limits has.
const DEFAULTS: [(&str, &str); 8] = [
    ("memory.max", "max"),
    ("memory.low", "0"),
    ("memory.oom.group", "0"),
    ("cpu.max", "max 100000"),
    ("cpu.weight", "100"),
    ("pids.max", "max"),
    ("cpuset.cpus", ""),
    ("cpuset.mems", ""),
];
/// Files that only `unified` names, with the kernel's defaults, for when an
/// update names them no more. Those of other files stay.
const UNIFIED_DEFAULTS: [(&str, &str); 8] = [
    ("cpu.idle", "0"),
    ("cpu.max.burst", "0"),
    ("memory.high", "max"),
    ("memory.min", "0"),
    ("memory.swap.high", "max"),
    ("memory.swap.max", "max"),
    ("memory.zswap.max", "max"),
    ("io.weight", "default 100"),
];

/// A control file and what is to be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    file: String,
    value: String,
    /// Field of the request to blame.
    field: String,
}

/// The control files and values that `resources` ask for.
fn settings(resources: &Resources) -> Result<Vec<Setting>, AgentError> {
    let mut out = numbers(resources)?;
    for (name, value) in [
        ("cpuset.cpus", &resources.cpuset_cpus),
        ("cpuset.mems", &resources.cpuset_mems),
    ] {
        let field = format!("resources.{}", name.replace('.', "_"));
        let fits = |b: u8| b.is_ascii_digit() || matches!(b, b',' | b'-');
        if value.len() > MAX_VALUE || !value.bytes().all(fits) {
            return Err(AgentError::invalid(field, "must be a list like \"0-1,3\""));
        }
        if !value.is_empty() {
            let (file, value) = (name.to_owned(), value.clone());
            out.push(Setting { file, value, field });
        }
    }
    for (file, value) in &resources.unified {
        let field = format!("resources.unified[{file}]");
        check_unified(&field, file, value)?;
        // What is said twice is said last here.
        out.retain(|s| s.file != *file);
        let (file, value) = (file.clone(), value.clone());
        out.push(Setting { file, value, field });
    }
    Ok(out)
}

fn numbers(resources: &Resources) -> Result<Vec<Setting>, AgentError> {
    let mut out = Vec::new();
    let mut add = |file: &str, field: &str, value: String| {
        out.push(Setting {
            file: file.to_owned(),
            value,
            field: format!("resources.{field}"),
        });
    };
    for (file, value) in [
        ("memory.max", resources.memory_max),
        ("memory.low", resources.memory_low),
        ("pids.max", resources.pids_max),
    ] {
        if value != 0 {
            add(file, &file.replace('.', "_"), value.to_string());
        }
    }
    if resources.oom_group {
        add("memory.oom.group", "oom_group", "1".to_owned());
    }
    let period = match resources.cpu_period_us {
        0 => 100_000,
        period @ 1_000..=1_000_000 => period,
        _ => {
            return Err(AgentError::invalid(
                "resources.cpu_period_us",
                "the CPU period must be from 1000 to 1000000 microseconds",
            ));
        }
    };
    match resources.cpu_quota_us {
        0 if resources.cpu_period_us != 0 => {
            add("cpu.max", "cpu_period_us", format!("max {period}"));
        }
        0 => {}
        quota @ 1_000.. => add("cpu.max", "cpu_quota_us", format!("{quota} {period}")),
        _ => {
            return Err(AgentError::invalid(
                "resources.cpu_quota_us",
                "the CPU quota must be at least 1000 microseconds",
            ));
        }
    }
    match resources.cpu_weight {
        0 => {}
        weight @ 1..=10_000 => add("cpu.weight", "cpu_weight", weight.to_string()),
        _ => {
            return Err(AgentError::invalid(
                "resources.cpu_weight",
                "the CPU weight must be from 1 to 10000",
            ));
        }
    }
    Ok(out)
}

fn check_unified(field: &str, file: &str, value: &str) -> Result<(), AgentError> {
    let (controller, rest) = file.split_once('.').unwrap_or((file, ""));
    let part = |p: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        !p.is_empty() && p.bytes().all(fits)
    };
    if !CONTROLLERS.contains(&controller)
        || file.len() > MAX_NAME
        || !rest.split('.').all(part)
        // Not a limit but an order to the kernel, which may take it long.
        || file == "memory.reclaim"
    {
        let problem = format!(
            "\"{}\" is no limit of a cgroup; they are named after the controllers {}",
            file.escape_default(),
            CONTROLLERS.join(", "),
        );
        return Err(AgentError::invalid(field, problem));
    }
    if value.is_empty() || value.len() > MAX_VALUE || value.chars().any(char::is_control) {
        let problem =
            format!("a value has 1 to {MAX_VALUE} bytes and no line breaks or control characters");
        return Err(AgentError::invalid(field, problem));
    }
    Ok(())
}

impl Cgroup {
    /// Sets the limits of a new cgroup.
    pub(super) fn set_first(&mut self, resources: &Resources) -> Result<(), AgentError> {
        let settings = settings(resources)?;
        for setting in &settings {
            self.write(setting)?;
        }
        self.unified = resources.unified.keys().cloned().collect();
        Ok(())
    }

    /// Replaces all limits by those of `resources`, or changes nothing.
    pub(crate) fn update(&mut self, resources: &Resources) -> Result<(), AgentError> {
        let mut settings = settings(resources)?;
        // What is not limited (any more) is as in a new cgroup.
        let unified = UNIFIED_DEFAULTS
            .iter()
            .filter(|(file, _)| self.unified.iter().any(|u| u == file));
        for (file, value) in DEFAULTS.iter().chain(unified) {
            // The kernel takes no weight of a group that is to be idle.
            let excluded = |s: &Setting| *file == "cpu.weight" && s.file == "cpu.idle";
            if !settings.iter().any(|s| s.file == *file || excluded(s)) {
                settings.push(Setting {
                    file: (*file).to_owned(),
                    value: (*value).to_owned(),
                    field: String::new(),
                });
            }
        }
        // What restricts the values of others goes first where it is taken back,
        // last where it is set.
        let restricts = |file: &str| matches!(file, "cpu.idle" | "cpu.max.burst");
        let (mut settings, last): (Vec<_>, Vec<_>) = settings
            .into_iter()
            .partition(|s| s.field.is_empty() == restricts(&s.file));
        settings.extend(last);
        if let Some(limit) = settings.iter().find(|s| s.file == "memory.max") {
            self.make_room(limit)?;
        }
        let mut undo = Vec::new();
        for setting in &settings {
            let before = self.read(&setting.file);
            let unchanged = before.as_ref().is_some_and(|b| b.trim() == setting.value);
            // No such controller: nothing to take back.
            if unchanged || (before.is_none() && setting.field.is_empty()) {
                continue;
            }
            if let Err(e) = self.write(setting) {
                for Setting { file, value, .. } in undo.iter().rev() {
                    let _ = self.write_text(file, value);
                }
                return Err(e);
            }
            undo.extend(before.map(|value| Setting {
                value: value.trim().to_owned(),
                ..setting.clone()
            }));
        }
        self.unified = resources.unified.keys().cloned().collect();
        Ok(())
    }

    /// Before memory.max is lowered to `limit`: what is in use fits below it, or
    /// the change is refused.
    fn make_room(&self, limit: &Setting) -> Result<(), AgentError> {
        let Ok(wanted) = limit.value.parse::<u64>() else {
            // "max", or what the kernel will refuse.
            return Ok(());
        };
        let current = || -> Option<u64> { self.read("memory.current")?.trim().parse().ok() };
        let Some(used) = current() else {
            return Ok(());
        };
        if used <= wanted {
            return Ok(());
        }
        let refuse = |used: u64| AgentError::Invalid {
            field: limit.field.clone(),
            problem: format!(
                "a memory limit of {wanted} bytes is below the {used} bytes in use; \
                 the kernel would kill processes to enforce it"
            ),
        };
        let stat = self.read("memory.stat").unwrap_or_default();
        let cache: u64 = ["active_file", "inactive_file", "slab_reclaimable"]
            .iter()
            .filter_map(|key| flat_key(&stat, key))
            .sum();
        if used.saturating_sub(cache) > wanted {
            return Err(refuse(used));
        }
        // The kernel says EAGAIN where it got less than it was asked for.
        let _ = self.write_text("memory.reclaim", &(used - wanted).to_string());
        match current() {
            Some(used) if used > wanted => Err(refuse(used)),
            _ => Ok(()),
        }
    }

    /// A control file's text; `None` if it is not there.
    pub(crate) fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(format!("{}/{file}", self.path)).ok()
    }

    fn write_text(&self, file: &str, value: &str) -> Result<(), Errno> {
        // An empty write would never reach the kernel's file; and a cpuset with
        // processes in it is not emptied again: all of its parent's is the same.
        let all = || self.read(&format!("../{file}.effective"));
        let text = match value {
            "" => all().unwrap_or_else(|| "\n".to_owned()),
            value => value.to_owned(),
        };
        fs::write(format!("{}/{file}", self.path), text)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }

    fn write(&self, setting: &Setting) -> Result<(), AgentError> {
        let Setting { file, value, field } = setting;
        let result = self.write_text(file, value);
        let problem = match result {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT) => format!("the guest's kernel has no {file} in a cgroup"),
            Err(Errno::ACCESS | Errno::PERM) => format!("{file} cannot be written"),
            Err(e @ (Errno::INVAL | Errno::RANGE | Errno::NODEV | Errno::OPNOTSUPP)) => {
                format!("the kernel does not take \"{value}\" for {file}: {e}")
            }
            Err(e) => {
                return Err(e).doing(|| format!("writing \"{value}\" to {}/{file}", self.path));
            }
        };
        Err(AgentError::invalid(field.clone(), problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn pairs(resources: &Resources) -> Vec<(String, String)> {
        let settings = settings(resources).unwrap();
        settings.into_iter().map(|s| (s.file, s.value)).collect()
    }

    fn field(resources: &Resources) -> String {
        settings(resources).unwrap_err().into_wire().field
    }

    fn unified(file: &str, value: &str) -> Resources {
        Resources {
            unified: [(file.to_owned(), value.to_owned())].into(),
            ..Resources::default()
        }
    }

    /// A directory with the files a cgroup has, which are files here.
    fn fake(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup::at(dir.path().to_str().unwrap().to_owned());
        (dir, cgroup)
    }

    fn text(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn every_limit_becomes_its_control_file() {
        let resources = Resources {
            cpu_quota_us: 50_000,
            cpu_period_us: 100_000,
            cpu_weight: 39,
            memory_max: 64 << 20,
            memory_low: 1 << 20,
            pids_max: 100,
            oom_group: true,
            cpuset_cpus: "0-1,3".to_owned(),
            cpuset_mems: "0".to_owned(),
            unified: [("memory.high".to_owned(), "1000".to_owned())].into(),
        };
        let want = [
            ("memory.max", "67108864"),
            ("memory.low", "1048576"),
            ("pids.max", "100"),
            ("memory.oom.group", "1"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "39"),
            ("cpuset.cpus", "0-1,3"),
            ("cpuset.mems", "0"),
            ("memory.high", "1000"),
        ];
        let want = want.map(|(file, value)| (file.to_owned(), value.to_owned()));
        assert_eq!(pairs(&resources), want);
        assert!(pairs(&Resources::default()).is_empty());
    }

    #[test]
    fn limits_the_kernel_would_refuse_are_named() {
        let with = |change: &dyn Fn(&mut Resources)| {
            let mut resources = Resources::default();
            change(&mut resources);
            field(&resources)
        };
        assert_eq!(with(&|r| r.cpu_weight = 10_001), "resources.cpu_weight");
        assert_eq!(with(&|r| r.cpu_quota_us = 999), "resources.cpu_quota_us");
        assert_eq!(with(&|r| r.cpu_period_us = 999), "resources.cpu_period_us");
        for wrong in ["0\n", "a", "0 1", "../x"] {
            let set = |r: &mut Resources| r.cpuset_cpus = wrong.to_owned();
            assert_eq!(with(&set), "resources.cpuset_cpus");
        }
    }

    #[test]
    fn unified_files_are_controllers_limits_only() {
        for wrong in [
            "cgroup.procs",
            "cgroup.kill",
            "memory",
            "memory.",
            "memory..max",
            "memory.max/../../x",
            "../memory.max",
            "/memory.max",
            "memory.reclaim",
            "memory.max\n",
            "freezer.state",
            "",
        ] {
            let field = field(&unified(wrong, "1"));
            assert_eq!(field, format!("resources.unified[{wrong}]"));
        }
        for wrong in ["", "1\n2", "1\0", "\t", &"x".repeat(5000)] {
            assert_eq!(
                field(&unified("memory.high", wrong)),
                "resources.unified[memory.high]"
            );
        }
        assert_eq!(pairs(&unified("hugetlb.2MB.max", "0")).len(), 1);
    }

    #[test]
    fn an_entry_of_unified_wins_over_its_field() {
        let resources = Resources {
            memory_max: 5,
            ..unified("memory.max", "7")
        };
        assert_eq!(pairs(&resources), [("memory.max".into(), "7".into())]);
    }

    #[test]
    fn an_update_takes_back_what_it_does_not_name() {
        let (dir, mut cgroup) = fake(&[
            ("memory.max", "max\n"),
            ("memory.current", "1000\n"),
            ("cpu.weight", "100\n"),
            ("memory.high", "max\n"),
        ]);
        let first = Resources {
            memory_max: 4096,
            cpu_weight: 50,
            ..unified("memory.high", "2048")
        };
        cgroup.update(&first).unwrap();
        assert_eq!(text(dir.path(), "memory.high"), "2048");
        let second = Resources {
            memory_max: 8192,
            ..Resources::default()
        };
        cgroup.update(&second).unwrap();
        assert_eq!(text(dir.path(), "memory.max"), "8192");
        assert_eq!(text(dir.path(), "cpu.weight"), "100");
        assert_eq!(text(dir.path(), "memory.high"), "max");
    }

    #[test]
    fn regression_a_cpuset_goes_back_to_all_of_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        fs::create_dir(&path).unwrap();
        fs::write(dir.path().join("cpuset.cpus.effective"), "0-3\n").unwrap();
        fs::write(path.join("cpuset.cpus"), "1\n").unwrap();
        let mut cgroup = Cgroup::at(path.to_str().unwrap().to_owned());
        cgroup.update(&Resources::default()).unwrap();
        assert_eq!(text(&path, "cpuset.cpus"), "0-3\n");
    }

    #[test]
    fn memory_in_use_is_not_taken_away() {
        let (dir, mut cgroup) = fake(&[
            ("memory.max", "max\n"),
            ("memory.current", "10000\n"),
            (
                "memory.stat",
                "anon 9000\nactive_file 500\ninactive_file 500\n",
            ),
            ("memory.reclaim", ""),
        ]);
        let resources = |memory_max| Resources {
            memory_max,
            ..Resources::default()
        };
        let error = cgroup.update(&resources(8192)).unwrap_err().into_wire();
        assert_eq!(error.field, "resources.memory_max");
        assert!(error.message.contains("10000 bytes in use"));
        // Cache might go; this one does not.
        cgroup.update(&resources(9500)).unwrap_err();
        assert_eq!(text(dir.path(), "memory.reclaim"), "500");
        assert_eq!(text(dir.path(), "memory.max"), "max\n");
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let (dir, mut cgroup) = fake(&[("memory.max", "max\n"), ("cpu.weight", "100\n")]);
        // A directory in the place of a file the kernel refuses to write.
        fs::create_dir(dir.path().join("pids.max")).unwrap();
        let resources = Resources {
            memory_max: 4096,
            cpu_weight: 7,
            pids_max: 9,
            ..Resources::default()
        };
        cgroup.update(&resources).unwrap_err();
        assert_eq!(text(dir.path(), "memory.max"), "max");
        assert_eq!(text(dir.path(), "cpu.weight"), "100\n");
    }

    #[test]
    fn a_file_the_kernel_has_not_is_named() {
        let dir = Path::new("/proc/self");
        let mut cgroup = Cgroup::at(dir.to_str().unwrap().to_owned());
        let error = cgroup.update(&unified("misc.max", "1")).unwrap_err();
        assert_eq!(error.into_wire().field, "resources.unified[misc.max]");
    }

    proptest! {
        #[test]
        fn a_unified_name_stays_in_its_directory(file in "[a-z./]{0,24}", value in "\\PC{0,20}") {
            if settings(&unified(&file, &value)).is_ok() {
                prop_assert!(!file.contains('/') && !file.starts_with('.'));
            }
        }
    }
}
