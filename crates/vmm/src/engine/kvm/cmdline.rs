//! The guest kernel's command line.

use std::fmt::Write;

use super::bus::{VIRTIO_WINDOW_LEN, virtio_gsi, virtio_window};

/// What every guest gets: messages on the virtio console, warnings and worse only
/// (each line is an exit); reset by the keyboard controller's port;
/// random numbers from the boot seed and the processor;
/// no wait for a timer interrupt, no probing of what is not there.
const BASE: &str = "console=hvc0 loglevel=5 reboot=k no_timer_check tsc=reliable \
     random.trust_bootloader=on random.trust_cpu=on rootfstype=ramfs";

/// The command line for `devices` virtio devices, the daemon's additions last,
/// so that they prevail.
pub(super) fn build(devices: usize, engine_additions: &str, extra: &str) -> String {
    let mut line = BASE.to_string();
    for index in 0..devices {
        let (window, gsi) = (virtio_window(index), virtio_gsi(index));
        // Writing into a String cannot fail.
        let _ = write!(
            line,
            " virtio_mmio.device={VIRTIO_WINDOW_LEN}@{window:#x}:{gsi}"
        );
    }
    for part in [engine_additions, extra] {
        if !part.trim().is_empty() {
            line.push(' ');
            line.push_str(part.trim());
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_additions_follow_the_base() {
        let line = build(2, "", " loglevel=7 ");
        assert!(line.starts_with(BASE));
        assert!(line.ends_with(
            " virtio_mmio.device=4096@0xd0000000:5 virtio_mmio.device=4096@0xd0001000:6 loglevel=7"
        ));
    }
}
