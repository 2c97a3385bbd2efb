//! What no VM can have, refused before anything is made for it.

use crate::proto::{BootRequest, Engine, Nic};

/// Most vCPUs a VM can have.
pub const MAX_VCPUS: u32 = 64;
/// Least guest memory in MiB with which the guest kernel and agent run.
pub const MIN_MEMORY_MIB: u64 = 48;
/// Most guest memory in MiB (4 TiB): the bay and MMIO windows lie above it.
const MAX_MEMORY_MIB: u64 = 4 << 20;
/// Most network devices a VM can have.
pub const MAX_NICS: usize = 8;
/// Most queue pairs of a network device.
pub const MAX_QUEUE_PAIRS: u32 = 8;
/// Most bays of volumes that a VM can have.
pub const MAX_VOLUME_BAYS: u32 = 4;
/// Virtio devices that QEMU's microvm has places for without ACPI.
const QEMU_PLACES: usize = 8;
/// Those that every VM has: both bays, vsock, console.
const ALWAYS: usize = 4;
/// MTU of a network device in bytes: what IPv4 asks for to what a TAP can have.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_521;

/// A field of a [`BootRequest`] that no VM can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is out of range; it must be {allowed}")]
pub struct LimitError {
    /// Name of the field.
    pub field: &'static str,
    /// What was asked for.
    pub value: u64,
    /// What can be had.
    pub allowed: String,
}

/// Checks a boot request's numbers.
pub fn check_boot(request: &BootRequest) -> Result<(), LimitError> {
    let refuse = |field, value, allowed: String| {
        Err(LimitError {
            field,
            value,
            allowed,
        })
    };
    if !(1..=MAX_VCPUS).contains(&request.vcpus) {
        return refuse("vcpus", request.vcpus.into(), format!("1 to {MAX_VCPUS}"));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&request.memory_mib) {
        let allowed = format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB");
        return refuse("memory_mib", request.memory_mib, allowed);
    }
    if request.nics.len() > MAX_NICS {
        let allowed = format!("at most {MAX_NICS} network devices");
        return refuse("nics", request.nics.len() as u64, allowed);
    }
    if request.volume_bays > MAX_VOLUME_BAYS {
        let allowed = format!("at most {MAX_VOLUME_BAYS}");
        return refuse("volume_bays", request.volume_bays.into(), allowed);
    }
    for (index, nic) in request.nics.iter().enumerate() {
        check_nic(nic)?;
        let twice = request.nics[..index].iter().any(|n| n.mac == nic.mac);
        if twice {
            let allowed = "an address of its own for each network device".into();
            return refuse("nics.mac", index as u64, allowed);
        }
    }
    match request.engine() {
        Engine::Kvm | Engine::Qemu => optional_devices(request).map(drop),
        Engine::Unspecified => refuse("engine", 0, "kvm or qemu".into()),
    }
}

/// Devices of a VM that depend on what room its engine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionalDevices {
    /// Bays of volumes: as many as were asked for, or at least one.
    pub volume_bays: u32,
    /// The entropy device. The agent seeds the guest's generator without it.
    pub entropy: bool,
}

/// What of its optional devices a VM gets. The kvm engine has room for all; on qemu the
/// network devices and the shares come first, and volumes share what bays are left.
///
/// # Errors
///
/// More network devices than there is room for.
pub fn optional_devices(request: &BootRequest) -> Result<OptionalDevices, LimitError> {
    let wanted = request.volume_bays;
    if request.engine() != Engine::Qemu {
        return Ok(OptionalDevices {
            volume_bays: wanted,
            entropy: true,
        });
    }
    let others = usize::from(request.shares) + usize::from(wanted > 0);
    let room = QEMU_PLACES - ALWAYS - others;
    let nics = request.nics.len();
    let Some(spare) = room.checked_sub(nics) else {
        return Err(LimitError {
            field: "nics",
            value: nics as u64,
            allowed: format!(
                "at most {room} network devices on the qemu engine, which has room for {QEMU_PLACES} devices in all; kvm has it for {MAX_NICS} of them"
            ),
        });
    };
    let more = wanted
        .saturating_sub(1)
        .min(u32::try_from(spare).unwrap_or(0));
    Ok(OptionalDevices {
        volume_bays: wanted.min(1) + more,
        entropy: spare > usize::try_from(more).unwrap_or(spare),
    })
}

fn check_nic(nic: &Nic) -> Result<(), LimitError> {
    let refuse = |field, value, allowed: &str| {
        Err(LimitError {
            field,
            value,
            allowed: allowed.to_owned(),
        })
    };
    if nic.mac.len() != 6 {
        return refuse("nics.mac", nic.mac.len() as u64, "six bytes long");
    }
    if nic.mac[0] & 1 != 0 || nic.mac.iter().all(|&byte| byte == 0) {
        let first = nic.mac[0].into();
        return refuse("nics.mac", first, "the address of a single station");
    }
    if !MTU.contains(&nic.mtu) {
        return refuse("nics.mtu", nic.mtu.into(), "68 to 65521 bytes");
    }
    if nic.queue_pairs > MAX_QUEUE_PAIRS {
        let allowed = format!("at most {MAX_QUEUE_PAIRS}");
        return refuse("nics.queue_pairs", nic.queue_pairs.into(), &allowed);
    }
    Ok(())
}

/// How many descriptors the TAPs of a request's NICs take, in their order.
pub fn tap_counts(request: &BootRequest) -> impl Iterator<Item = usize> {
    let count = |nic: &Nic| usize::try_from(nic.queue_pairs.max(1)).unwrap_or(usize::MAX);
    request.nics.iter().map(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> BootRequest {
        BootRequest {
            engine: Engine::Kvm.into(),
            vcpus: 2,
            memory_mib: 256,
            ..Default::default()
        }
    }

    #[test]
    fn sound_request_passes() {
        assert_eq!(check_boot(&sound()), Ok(()));
    }

    #[test]
    fn what_no_vm_can_have_is_refused_by_field() {
        for (request, field) in [
            (
                BootRequest {
                    vcpus: 0,
                    ..sound()
                },
                "vcpus",
            ),
            (
                BootRequest {
                    vcpus: 65,
                    ..sound()
                },
                "vcpus",
            ),
            (
                BootRequest {
                    memory_mib: 1,
                    ..sound()
                },
                "memory_mib",
            ),
            (
                BootRequest {
                    memory_mib: u64::MAX,
                    ..sound()
                },
                "memory_mib",
            ),
            (
                BootRequest {
                    engine: 0,
                    ..sound()
                },
                "engine",
            ),
            (
                BootRequest {
                    volume_bays: 5,
                    ..sound()
                },
                "volume_bays",
            ),
        ] {
            assert_eq!(check_boot(&request).unwrap_err().field, field);
        }
    }

    #[test]
    fn qemu_has_eight_places_and_kvm_room_for_all() {
        let nic = |last| Nic {
            mac: vec![2, 0, 0, 0, 0, last],
            mtu: 1500,
            ..Nic::default()
        };
        let devices = |engine: Engine, nics: u8, shares, volume_bays| {
            let request = BootRequest {
                engine: engine.into(),
                nics: (0..nics).map(nic).collect(),
                shares,
                volume_bays,
                ..sound()
            };
            let optional = optional_devices(&request);
            assert_eq!(check_boot(&request).is_err(), optional.is_err());
            let OptionalDevices {
                volume_bays,
                entropy,
            } = optional
                .map_err(|error| assert_eq!(error.field, "nics"))
                .ok()?;
            Some((volume_bays, entropy))
        };
        for (nics, shares, bays, want) in [
            (0, false, 0, Some((0, true))),
            (1, true, 1, Some((1, true))),
            (2, true, 1, Some((1, false))),
            (3, true, 1, None),
            (1, true, 4, Some((2, false))),
            (1, false, 4, Some((3, false))),
            (0, false, 4, Some((4, false))),
            (4, false, 0, Some((0, false))),
            (5, false, 0, None),
        ] {
            assert_eq!(devices(Engine::Qemu, nics, shares, bays), want, "{nics}");
        }
        assert_eq!(devices(Engine::Kvm, 8, true, 4), Some((4, true)));
    }

    #[test]
    fn nics_that_cannot_be_are_refused_by_field() {
        let nic = |last: u8| Nic {
            mac: vec![2, 0, 0, 0, 0, last],
            mtu: 1500,
            queue_pairs: 2,
            anti_spoof: true,
        };
        let with = |nics| BootRequest { nics, ..sound() };
        let full = with((0..8).map(nic).collect());
        assert_eq!(check_boot(&full), Ok(()));
        assert_eq!(tap_counts(&full).sum::<usize>(), 16);
        let changed = |change: fn(&mut Nic)| {
            let mut changed = nic(1);
            change(&mut changed);
            vec![changed]
        };
        for (nics, field) in [
            ((0..9).map(nic).collect(), "nics"),
            (vec![nic(1), nic(1)], "nics.mac"),
            (changed(|nic| nic.mac = vec![2; 5]), "nics.mac"),
            (changed(|nic| nic.mac = vec![1; 6]), "nics.mac"),
            (changed(|nic| nic.mac = vec![0; 6]), "nics.mac"),
            (changed(|nic| nic.mtu = 67), "nics.mtu"),
            (changed(|nic| nic.mtu = 65_522), "nics.mtu"),
            (changed(|nic| nic.queue_pairs = 9), "nics.queue_pairs"),
        ] {
            assert_eq!(check_boot(&with(nics)).unwrap_err().field, field);
        }
    }
}
