//! Which engines this host has.

use crate::engine;
use vm_spec::{KvmSupport, Probe};

/// Measures KVM and looks for QEMU; takes some 50 ms.
pub fn probe() -> Probe {
    let kvm = engine::kvm::probe::probe();
    let kvm = KvmSupport {
        usable: kvm.usable,
        native: kvm.native,
        detail: kvm.detail,
    };
    Probe::new(kvm, engine::qemu::probe())
}
