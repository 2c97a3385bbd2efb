//! Figures of the guest as a whole, from /proc.

use guest_api::proto::NetworkInterface;
use std::fs;

/// Most network interfaces in an answer.
const MAX_INTERFACES: usize = 64;
/// Nanoseconds of one of /proc/stat's ticks (USER_HZ is 100 everywhere).
const TICK_NS: u64 = 10_000_000;

/// Memory in use and in all, in bytes.
pub(super) fn memory() -> (u64, u64) {
    memory_of(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn memory_of(text: &str) -> (u64, u64) {
    let bytes = |name: &str| {
        let find = |line: &str| {
            let kib = line.strip_prefix(name)?.strip_prefix(':')?;
            kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        text.lines()
            .find_map(find)
            .unwrap_or(0)
            .saturating_mul(1024)
    };
    let total = bytes("MemTotal");
    (total.saturating_sub(bytes("MemAvailable")), total)
}

/// CPU time that was not idle, in nanoseconds.
pub(super) fn cpu_ns() -> u64 {
    cpu_ns_of(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// "cpu user nice system idle iowait irq softirq steal guest guest_nice", where
/// the last two are in the first two.
fn cpu_ns_of(text: &str) -> u64 {
    let line = text.lines().next().and_then(|l| l.strip_prefix("cpu "));
    let ticks = line.unwrap_or("").split_whitespace().take(8).enumerate();
    ticks
        .filter(|(i, _)| !matches!(i, 3 | 4))
        .filter_map(|(_, n)| n.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
        .saturating_mul(TICK_NS)
}

/// The pod's network interfaces.
pub(super) fn interfaces() -> Vec<NetworkInterface> {
    interfaces_of(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
}

fn interfaces_of(text: &str) -> Vec<NetworkInterface> {
    text.lines()
        .filter_map(interface)
        .take(MAX_INTERFACES)
        .collect()
}

/// "eth0: " and 16 numbers, eight of each direction.
fn interface(line: &str) -> Option<NetworkInterface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map(|n| n.parse().ok())
        .collect::<Option<_>>()?;
    let at = |i: usize| numbers.get(i).copied();
    Some(NetworkInterface {
        name: name.trim().to_owned(),
        rx_bytes: at(0)?,
        rx_packets: at(1)?,
        rx_errors: at(2)?,
        rx_dropped: at(3)?,
        tx_bytes: at(8)?,
        tx_packets: at(9)?,
        tx_errors: at(10)?,
        tx_dropped: at(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let text = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   400 kB\n";
        assert_eq!(memory_of(text), (600 * 1024, 1000 * 1024));
        assert_eq!(memory_of(""), (0, 0));
    }

    #[test]
    fn idle_time_is_left_out() {
        let text = "cpu  1 2 3 1000 1000 4 5 6 7 8\ncpu0 9 9 9 9\n";
        assert_eq!(cpu_ns_of(text), 21 * TICK_NS);
    }

    #[test]
    fn interfaces_have_both_directions() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets| bytes\n\
            \x20   lo: 1 2 3 4 5 6 7 8 11 12 13 14 15 16 17 18\n\
            eth0:9 0 0 0 0 0 0 0 10 0 0 0 0 0 0 0\n  short: 1 2\n";
        let got = interfaces_of(text);
        assert_eq!(got.len(), 2);
        let lo = NetworkInterface {
            name: "lo".to_owned(),
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 11,
            tx_packets: 12,
            tx_errors: 13,
            tx_dropped: 14,
        };
        assert_eq!(got[0], lo);
        assert_eq!((got[1].name.as_str(), got[1].tx_bytes), ("eth0", 10));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "([a-z: 0-9|]{0,40}\n){0,5}") {
            let _ = (interfaces_of(&text), cpu_ns_of(&text), memory_of(&text));
        }
    }
}
