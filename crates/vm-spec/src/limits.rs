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
        Engine::Kvm | Engine::Qemu => Ok(()),
        Engine::Unspecified => refuse("engine", 0, "kvm or qemu".into()),
    }
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
