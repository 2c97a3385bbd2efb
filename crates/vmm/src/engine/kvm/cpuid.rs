//! What the guest sees by CPUID: KVM's supported features, one socket of
//! `vcpus` cores, no nested virtualization, no performance counters.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Signature, features and the initial APIC id.
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_PERFMON: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;
const LEAF_VENDOR: u32 = 0;
/// EBX of the vendor leaf, for AMD and Hygon.
const VENDORS_AMD: [u32; 2] = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")];
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_CORES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
/// KVM's paravirtual features.
pub(super) const LEAF_KVM_FEATURES: u32 = 0x4000_0001;

const ECX_VMX: u32 = 1 << 5;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const ECX_AMD_SVM: u32 = 1 << 2;
const ECX_AMD_CMP_LEGACY: u32 = 1 << 1;
/// Level types of the extended topology leaves.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Bits that number `vcpus` cores.
fn core_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// CPUID of vCPU `id` of `vcpus`, from what KVM supports.
pub(super) fn for_vcpu(supported: &CpuId, id: u32, vcpus: u32) -> Result<CpuId, CpuIdError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| {
            !matches!(
                entry.function,
                LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_AMD_TOPOLOGY_V2
            )
        })
        .copied()
        .collect();
    let amd = entries
        .iter()
        .any(|entry| entry.function == LEAF_VENDOR && VENDORS_AMD.contains(&entry.ebx));
    for entry in &mut entries {
        adapt(entry, id, vcpus);
        if amd {
            adapt_amd(entry, id, vcpus);
        }
    }
    let vendor_has_topology = supported
        .as_slice()
        .iter()
        .any(|entry| entry.function == LEAF_TOPOLOGY);
    if vendor_has_topology {
        entries.extend(topology(id, vcpus));
    }
    CpuId::from_entries(&entries).map_err(|_| CpuIdError(entries.len()))
}

/// KVM takes no more CPUID entries.
#[derive(Debug, thiserror::Error)]
#[error("{0} CPUID entries are more than KVM takes")]
pub(super) struct CpuIdError(usize);

fn adapt(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = entry.ebx & 0xffff | vcpus << 16 | id << 24;
            entry.ecx &= !ECX_VMX;
            entry.ecx |= ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            if vcpus > 1 {
                entry.edx |= EDX_HTT;
            } else {
                entry.edx &= !EDX_HTT;
            }
        }
        LEAF_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { vcpus } else { 1 };
            let cores = (1 << core_bits(vcpus)) - 1;
            entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14 | cores << 26;
        }
        LEAF_PERFMON => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_AMD_FEATURES => entry.ecx &= !ECX_AMD_SVM,
        _ => {}
    }
}

/// What only AMD's processors (and Hygon's) say about topology.
fn adapt_amd(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    match entry.function {
        LEAF_AMD_FEATURES if vcpus > 1 => entry.ecx |= ECX_AMD_CMP_LEGACY,
        LEAF_AMD_CORES => entry.ecx = core_bits(vcpus) << 12 | (vcpus - 1),
        LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { vcpus } else { 1 };
            entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14;
        }
        LEAF_AMD_TOPOLOGY => {
            entry.eax = id;
            // One thread per core, one node.
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Leaf 0xb: one thread per core, `vcpus` cores; the APIC id is the number.
fn topology(id: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, kind, bits, count| kvm_cpuid_entry2 {
        function: LEAF_TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: bits,
        ebx: count,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    [
        level(0, LEVEL_SMT, 0, 1),
        level(1, LEVEL_CORE, core_bits(vcpus), vcpus),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let entry = |function, eax, ecx| kvm_cpuid_entry2 {
            function,
            eax,
            ecx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            kvm_cpuid_entry2 {
                ebx: VENDORS_AMD[0],
                ..Default::default()
            },
            entry(LEAF_FEATURES, 0, ECX_VMX),
            entry(LEAF_CACHES, 0x7c00_4163, 0),
            entry(LEAF_PERFMON, 7, 7),
            entry(LEAF_TOPOLOGY, 0, 0),
            entry(LEAF_AMD_FEATURES, 0, ECX_AMD_SVM),
            entry(LEAF_AMD_CORES, 0x3030, 0),
            entry(LEAF_AMD_TOPOLOGY, 9, 9),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_number_as_apic_id_everywhere() {
        let cpuid = for_vcpu(&supported(), 3, 5).unwrap();
        assert_eq!(leaf(&cpuid, LEAF_FEATURES, 0).ebx >> 24, 3);
        assert_eq!(leaf(&cpuid, LEAF_FEATURES, 0).ebx >> 16 & 0xff, 5);
        assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 1).edx, 3);
        assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 1).eax, 3);
        assert_eq!(leaf(&cpuid, LEAF_AMD_TOPOLOGY, 0).eax, 3);
        assert_eq!(leaf(&cpuid, LEAF_AMD_CORES, 0).ecx, 3 << 12 | 4);
    }

    #[test]
    fn intel_gets_nothing_of_amds_topology() {
        let mut entries = supported().as_slice().to_vec();
        entries[0].ebx = u32::from_le_bytes(*b"Genu");
        let cpuid = for_vcpu(&CpuId::from_entries(&entries).unwrap(), 3, 5).unwrap();
        assert_eq!(leaf(&cpuid, LEAF_AMD_CORES, 0).ecx, 0);
        assert_eq!(leaf(&cpuid, LEAF_AMD_FEATURES, 0).ecx, 0);
        assert_eq!(leaf(&cpuid, LEAF_TOPOLOGY, 1).edx, 3);
    }

    #[test]
    fn virtualization_and_counters_are_hidden() {
        let cpuid = for_vcpu(&supported(), 0, 1).unwrap();
        assert_eq!(leaf(&cpuid, LEAF_FEATURES, 0).ecx & ECX_VMX, 0);
        assert_eq!(leaf(&cpuid, LEAF_AMD_FEATURES, 0).ecx & ECX_AMD_SVM, 0);
        assert_eq!(leaf(&cpuid, LEAF_PERFMON, 0).eax, 0);
    }

    #[test]
    fn a_single_vcpu_needs_no_bits() {
        assert_eq!(core_bits(1), 0);
        assert_eq!(core_bits(2), 1);
        assert_eq!(core_bits(64), 6);
    }
}
