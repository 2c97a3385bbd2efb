//! Who answers at which address: a window per virtio device, and the few ports
//! that a kernel without firmware touches.

use std::sync::Arc;

use super::virtio_mmio::Transport;

/// First virtio window, in the hole below 4 GiB.
const VIRTIO_START: u64 = 0xd000_0000;
/// Bytes of a window: a page each.
pub(super) const VIRTIO_WINDOW_LEN: u64 = 4096;
/// First interrupt line for devices; those below belong to a PC's old devices.
const FIRST_GSI: u32 = 5;
/// Most devices: lines 5 to 23 of the I/O APIC.
pub(super) const MAX_DEVICES: usize = 19;

/// Keyboard controller: data, and status/command.
const I8042_DATA: u16 = 0x60;
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// Real-time clock: index and data.
const CMOS: std::ops::RangeInclusive<u16> = 0x70..=0x71;

/// Address of the window of device `index`.
pub(super) fn virtio_window(index: usize) -> u64 {
    VIRTIO_START + VIRTIO_WINDOW_LEN * index as u64
}

/// Interrupt line of device `index`.
pub(super) fn virtio_gsi(index: usize) -> u32 {
    (FIRST_GSI..).nth(index).unwrap_or(u32::MAX)
}

/// What a port write asks of the machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PortAction {
    /// Nothing.
    None,
    /// The guest resets itself.
    Reset,
}

/// The addresses of one VM. vCPU threads share it.
pub(super) struct Bus {
    devices: Vec<Arc<Transport>>,
    /// Serial port for `earlyprintk=ttyS0`, in tests only.
    #[cfg(test)]
    pub(super) serial: std::sync::Mutex<Vec<u8>>,
}

impl Bus {
    /// Device `i` answers at `virtio_window(i)`.
    pub(super) fn new(devices: Vec<Arc<Transport>>) -> Self {
        Self {
            devices,
            #[cfg(test)]
            serial: std::sync::Mutex::default(),
        }
    }

    fn device(&self, address: u64) -> Option<(&Transport, u64)> {
        let offset = address.checked_sub(VIRTIO_START)?;
        let index = usize::try_from(offset / VIRTIO_WINDOW_LEN).ok()?;
        let device = self.devices.get(index)?;
        Some((device, offset % VIRTIO_WINDOW_LEN))
    }

    /// The guest reads `data.len()` bytes of memory that is no RAM.
    pub(super) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.device(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes memory that is no RAM.
    pub(super) fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            device.write(offset, data);
        }
    }

    /// The guest reads a port.
    pub(super) fn port_read(&self, port: u16, data: &mut [u8]) {
        #[cfg(test)]
        if port == 0x3fd {
            return data.fill(0x60);
        }
        // No clock chip: its "update in progress" bit must not look stuck. No
        // keyboard controller: its "input buffer full" bit must not either.
        let absent = CMOS.contains(&port) || matches!(port, I8042_DATA | I8042_COMMAND);
        data.fill(if absent { 0 } else { 0xff });
    }

    /// The guest writes a port.
    pub(super) fn port_write(&self, port: u16, data: &[u8]) -> PortAction {
        #[cfg(test)]
        if port == 0x3f8 {
            let mut serial = self.serial.lock().unwrap();
            serial.extend_from_slice(data);
            if std::env::var_os("SPHERULE_SERIAL").is_some() {
                use std::io::Write;
                let _ = std::io::stderr().write_all(data);
            }
        }
        if port == I8042_COMMAND && data.first() == Some(&I8042_RESET) {
            return PortAction::Reset;
        }
        PortAction::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_is_the_keyboard_controllers_command_alone() {
        let bus = Bus::new(Vec::new());
        assert_eq!(bus.port_write(0x64, &[0xfe]), PortAction::Reset);
        assert_eq!(bus.port_write(0x64, &[0xd1]), PortAction::None);
        assert_eq!(bus.port_write(0x60, &[0xfe]), PortAction::None);
        assert_eq!(bus.port_write(0x64, &[]), PortAction::None);
    }

    #[test]
    fn what_is_not_there_reads_as_ones() {
        let bus = Bus::new(Vec::new());
        let mut data = [0; 4];
        bus.port_read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        for address in [0, 0xd000_0000, 0xffff_ffff_ffff_ffff] {
            let mut data = [0; 8];
            bus.mmio_read(address, &mut data);
            assert_eq!(data, [0xff; 8]);
            bus.mmio_write(address, &data);
        }
    }

    #[test]
    fn clock_and_keyboard_controller_never_look_busy() {
        let bus = Bus::new(Vec::new());
        for port in [0x60, 0x64, 0x70, 0x71] {
            let mut data = [0xaa];
            bus.port_read(port, &mut data);
            assert_eq!(data, [0], "{port:#x}");
        }
    }
}
