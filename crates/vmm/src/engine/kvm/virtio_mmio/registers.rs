//! The register map of virtio over MMIO (virtio 1.2, 4.2.2). All are 32 bits
//! wide, little-endian.

/// "virt".
pub(super) const MAGIC: u64 = 0x000;
pub(super) const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
pub(super) const VERSION: u64 = 0x004;
pub(super) const VERSION_VALUE: u32 = 2;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00c;
pub(super) const VENDOR_VALUE: u32 = u32::from_le_bytes(*b"SPHR");
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(super) const QUEUE_SEL: u64 = 0x030;
pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
pub(super) const QUEUE_NUM: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
/// The driver writes a queue's index: ring its bell.
pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
pub(super) const INTERRUPT_ACK: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Length and base of the selected shared memory region: all ones, "none".
pub(super) const SHM: std::ops::RangeInclusive<u64> = 0x0b0..=0x0bc;
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
/// The device's own configuration, of any width.
pub(super) const CONFIG: u64 = 0x100;

/// Bits of [`STATUS`] (virtio 1.2, 2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u32 = 1;
    pub(in super::super) const DRIVER: u32 = 2;
    pub(in super::super) const DRIVER_OK: u32 = 4;
    pub(in super::super) const FEATURES_OK: u32 = 8;
    pub(in super::super) const NEEDS_RESET: u32 = 64;
    pub(in super::super) const FAILED: u32 = 128;
}

/// Bits of [`INTERRUPT_STATUS`].
pub(super) mod interrupt {
    pub(in super::super) const USED_BUFFER: u32 = 1;
    pub(in super::super) const CONFIG_CHANGE: u32 = 2;
}
