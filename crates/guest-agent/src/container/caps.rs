//! Capabilities by name, and a process's five sets of them.

use crate::error::AgentError;
use guest_api::proto::Capabilities;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Names in the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The sets a container's process starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CapabilityPlan {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
    permitted: CapabilitySet,
    ambient: CapabilitySet,
}

impl CapabilityPlan {
    /// Everything the kernel knows, for privileged containers; not inheritable,
    /// so that another user than root gets none by exec.
    pub(crate) fn privileged() -> Self {
        let all = everything();
        Self {
            bounding: all,
            effective: all,
            inheritable: CapabilitySet::empty(),
            permitted: all,
            ambient: CapabilitySet::empty(),
        }
    }

    /// The sets of a request. Refuses unknown names and sets the kernel would
    /// refuse (effective past permitted, ambient past permitted or inheritable).
    pub(crate) fn from_request(request: &Capabilities) -> Result<Self, AgentError> {
        let plan = Self {
            bounding: set(&request.bounding, "bounding")?,
            effective: set(&request.effective, "effective")?,
            inheritable: set(&request.inheritable, "inheritable")?,
            permitted: set(&request.permitted, "permitted")?,
            ambient: set(&request.ambient, "ambient")?,
        };
        if !plan.permitted.contains(plan.effective) {
            return Err(AgentError::invalid(
                "process.capabilities.effective",
                "an effective capability must be permitted too",
            ));
        }
        if !(plan.permitted & plan.inheritable).contains(plan.ambient) {
            return Err(AgentError::invalid(
                "process.capabilities.ambient",
                "an ambient capability must be permitted and inheritable too",
            ));
        }
        Ok(plan)
    }

    /// Drops what is not in the bounding set. Needs CAP_SETPCAP, so before the
    /// other sets and before the user changes.
    pub(crate) fn limit_bounding(&self) -> Result<(), Errno> {
        for capability in (everything() - self.bounding).iter() {
            match remove_capability_from_bounding_set(capability) {
                // A kernel older than this list.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Sets the other four sets. `and_sys_admin`: CAP_SYS_ADMIN stays besides
    /// until [`CapabilityPlan::drop_extra`].
    pub(crate) fn apply(&self, and_sys_admin: bool) -> Result<(), Errno> {
        let extra = if and_sys_admin {
            CapabilitySet::SYS_ADMIN
        } else {
            CapabilitySet::empty()
        };
        self.set(extra)?;
        for capability in self.ambient.iter() {
            configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(())
    }

    /// Drops what [`CapabilityPlan::apply`] kept besides: a single capset(2).
    pub(crate) fn drop_extra(&self) -> Result<(), Errno> {
        self.set(CapabilitySet::empty())
    }

    /// Leaves the process what the exec of a program would: all permitted ones to
    /// root, the ambient ones to others. For one that becomes no program.
    pub(crate) fn settle(&self, is_root: bool) -> Result<(), Errno> {
        let kept = if is_root {
            self.permitted
        } else {
            self.ambient
        };
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: self.inheritable,
            },
        )
    }

    fn set(&self, extra: CapabilitySet) -> Result<(), Errno> {
        set_capabilities(
            None,
            CapabilitySets {
                effective: self.effective | extra,
                permitted: self.permitted | extra,
                inheritable: self.inheritable,
            },
        )
    }
}

fn everything() -> CapabilitySet {
    (0..NAMES.len()).fold(CapabilitySet::empty(), |set, n| {
        set | CapabilitySet::from_bits_retain(1 << n)
    })
}

fn set(names: &[String], which: &str) -> Result<CapabilitySet, AgentError> {
    let mut set = CapabilitySet::empty();
    for (i, name) in names.iter().enumerate() {
        let number = name
            .strip_prefix("CAP_")
            .and_then(|short| NAMES.iter().position(|n| *n == short));
        let Some(number) = number else {
            return Err(AgentError::invalid(
                format!("process.capabilities.{which}[{i}]"),
                format!("unknown capability \"{name}\""),
            ));
        };
        set |= CapabilitySet::from_bits_retain(1 << number);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn names_have_the_kernels_numbers() {
        let got = set(
            &names(&["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]),
            "x",
        );
        let want =
            CapabilitySet::CHOWN | CapabilitySet::SYS_ADMIN | CapabilitySet::CHECKPOINT_RESTORE;
        assert_eq!(got.unwrap(), want);
        assert_eq!(everything().iter().count(), NAMES.len());
    }

    #[test]
    fn an_unknown_name_is_refused_by_its_place() {
        for name in ["CHOWN", "CAP_", "cap_chown", "CAP_FLY"] {
            let request = Capabilities {
                permitted: names(&["CAP_KILL", name]),
                ..Capabilities::default()
            };
            let error = CapabilityPlan::from_request(&request).unwrap_err();
            assert_eq!(error.into_wire().field, "process.capabilities.permitted[1]");
        }
    }

    #[test]
    fn sets_the_kernel_would_refuse_are_refused_early() {
        let request = Capabilities {
            effective: names(&["CAP_KILL"]),
            ..Capabilities::default()
        };
        CapabilityPlan::from_request(&request).unwrap_err();
        let request = Capabilities {
            permitted: names(&["CAP_KILL"]),
            ambient: names(&["CAP_KILL"]),
            ..Capabilities::default()
        };
        let error = CapabilityPlan::from_request(&request).unwrap_err();
        assert_eq!(error.into_wire().field, "process.capabilities.ambient");
    }
}
