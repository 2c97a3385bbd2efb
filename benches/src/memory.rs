//! What a pod's processes hold in memory: the guest's own pages apart from what
//! the VMM (and QEMU) need beside them. Proportional set sizes, from
//! /proc/pid/smaps.

use anyhow::Context;

/// Proportional set sizes in KiB.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Pss {
    /// Pages of guest memory.
    pub(crate) guest: u64,
    /// All else.
    pub(crate) vmm: u64,
}

/// What the system may have merged with guest memory: mappings beside it.
const MERGED: u64 = 16 << 20;

/// Adds up a process's mappings. Guest memory is told by its size, which is the
/// VM's, or little more: each engine maps it in one piece where it is below 3 GiB.
pub(crate) fn of_process(pid: u64, guest_mib: u64) -> anyhow::Result<Pss> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(add_up(&smaps, guest_mib << 20))
}

/// All of a process, in KiB.
pub(crate) fn pss(pid: u64) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.split_ascii_whitespace().next());
    kib.and_then(|kib| kib.parse().ok())
        .with_context(|| format!("{path} says no Pss"))
}

fn add_up(smaps: &str, guest_bytes: u64) -> Pss {
    let mut pss = Pss::default();
    let mut in_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "Pss:" {
            let kib: u64 = words
                .next()
                .and_then(|w| w.parse().ok())
                .unwrap_or_default();
            if in_guest {
                pss.guest += kib;
            } else {
                pss.vmm += kib;
            }
        } else if !first.ends_with(':') {
            let guest = guest_bytes..guest_bytes + MERGED;
            in_guest = length(first).is_some_and(|bytes| guest.contains(&bytes));
        }
    }
    pss
}

/// Bytes of a mapping, from its `start-end`.
fn length(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    hex(end)?.checked_sub(hex(start)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_counted_apart() {
        let smaps = "7f0000000000-7f0010000000 rw-s 00000000 00:01 9 /memfd:mem (deleted)\n\
            Size: 262144 kB\nPss:  50000 kB\nPss_Dirty: 1 kB\n\
            7f1000000000-7f1000100000 r-xp 00000000 08:01 7 /usr/bin/spherule-vmm\n\
            Pss:  900 kB\n";
        let pss = add_up(smaps, 256 << 20);
        assert_eq!((pss.guest, pss.vmm), (50_000, 900));
    }
}
