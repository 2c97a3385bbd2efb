//! What no VM can have, refused before anything is made for it.

use crate::proto::{BootRequest, Engine};

/// Most vCPUs a VM can have.
pub const MAX_VCPUS: u32 = 64;
/// Least guest memory in MiB with which the guest kernel and agent run.
pub const MIN_MEMORY_MIB: u64 = 48;
/// Most guest memory in MiB (4 TiB): the bay and MMIO windows lie above it.
const MAX_MEMORY_MIB: u64 = 4 << 20;

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
    match request.engine() {
        Engine::Kvm | Engine::Qemu => Ok(()),
        Engine::Unspecified => refuse("engine", 0, "kvm or qemu".into()),
    }
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
        ] {
            assert_eq!(check_boot(&request).unwrap_err().field, field);
        }
    }
}
