//! What `spherule-vmm probe` prints: which engines this host has, and which one
//! `auto` stands for.

use serde::{Deserialize, Serialize};

/// The engines of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Our own VMM on /dev/kvm.
    pub kvm: KvmSupport,
    /// QEMU below our device back ends.
    pub qemu: QemuSupport,
    /// What `auto` means here.
    pub choice: Choice,
}

/// What /dev/kvm can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmSupport {
    /// /dev/kvm opens and has what the engine needs.
    pub usable: bool,
    /// Guest kernels run at native speed: hardware virtualization is there.
    pub native: bool,
    /// How this was found out, or why it is not usable.
    pub detail: String,
}

/// What QEMU is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuSupport {
    /// A QEMU that the engine can work with is installed.
    pub usable: bool,
    /// Path of the program, empty if there is none.
    pub path: String,
    /// Its version, as "7.2.22"; empty if unknown.
    pub version: String,
    /// Why it is not usable and what to do, empty if it is.
    pub detail: String,
}

/// The engine that `auto` stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The engine.
    pub engine: EngineName,
    /// Why this one, as a sentence without a full stop.
    pub reason: String,
    /// It works, but slowly or perhaps not at all: to be said as a warning.
    #[serde(default)]
    pub warning: bool,
}

/// An engine by the name that people write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// Our own VMM on /dev/kvm.
    Kvm,
    /// QEMU below our device back ends.
    Qemu,
}

impl From<EngineName> for crate::proto::Engine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Kvm => Self::Kvm,
            EngineName::Qemu => Self::Qemu,
        }
    }
}

impl Probe {
    /// Adds the choice to what was found: a native KVM, otherwise QEMU if it is
    /// there, otherwise KVM all the same.
    pub fn new(kvm: KvmSupport, qemu: QemuSupport) -> Self {
        let (engine, reason, warning) = if kvm.usable && kvm.native {
            let reason = "KVM runs guest kernels at native speed".into();
            (EngineName::Kvm, reason, false)
        } else if qemu.usable {
            let reason = format!("{}; QEMU {} is installed", kvm.detail, qemu.version);
            (EngineName::Qemu, reason, false)
        } else if kvm.usable {
            let reason = format!(
                "{}, and {}: guest kernels run about a thousand times slower than natively",
                kvm.detail, qemu.detail
            );
            (EngineName::Kvm, reason, true)
        } else {
            let reason = format!("no engine can run: {}; {}", kvm.detail, qemu.detail);
            (EngineName::Kvm, reason, true)
        };
        Self {
            kvm,
            qemu,
            choice: Choice {
                engine,
                reason,
                warning,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(usable: bool, native: bool, qemu: bool) -> Choice {
        let kvm = KvmSupport {
            usable,
            native,
            detail: "kvm says".into(),
        };
        let qemu = QemuSupport {
            usable: qemu,
            detail: "qemu says".into(),
            ..QemuSupport::default()
        };
        Probe::new(kvm, qemu).choice
    }

    #[test]
    fn native_kvm_comes_first() {
        assert_eq!(probe(true, true, true).engine, EngineName::Kvm);
        assert!(!probe(true, true, false).warning);
    }

    #[test]
    fn qemu_is_taken_where_kvm_is_slow_or_absent() {
        assert_eq!(probe(true, false, true).engine, EngineName::Qemu);
        assert_eq!(probe(false, false, true).engine, EngineName::Qemu);
    }

    #[test]
    fn slow_kvm_without_qemu_is_taken_with_a_warning() {
        let choice = probe(true, false, false);
        assert_eq!((choice.engine, choice.warning), (EngineName::Kvm, true));
        assert!(choice.reason.contains("qemu says"), "{}", choice.reason);
    }

    #[test]
    fn no_engine_at_all_says_why_for_both() {
        let choice = probe(false, false, false);
        assert!(choice.warning);
        assert!(
            choice.reason.contains("kvm says; qemu says"),
            "{}",
            choice.reason
        );
    }
}
