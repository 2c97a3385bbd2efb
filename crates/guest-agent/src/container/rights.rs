//! The last changes of a process of a container before its program: user,
//! capabilities, and the filter of its system calls.

use super::caps::CapabilityPlan;
use super::request::Checked;
use super::user::Identity;
use crate::error::AgentError;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// Becomes `identity` with the capabilities of the container. Where a filter is
/// still to be loaded, the right to do so is kept for [`load_seccomp`].
pub(super) fn change_identity(checked: &Checked, identity: &Identity) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<Gid> = identity.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    // Otherwise leaving uid 0 would clear the sets set below.
    rustix::thread::set_keep_capabilities(true)?;
    checked.capabilities.limit_bounding()?;
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    checked.capabilities.apply(keeps_right(checked))?;
    rustix::thread::set_keep_capabilities(false)?;
    if checked.process.no_new_privileges {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

/// The kernel wants CAP_SYS_ADMIN of a process that loads a filter, unless its
/// program gains no rights by exec.
fn keeps_right(checked: &Checked) -> bool {
    checked.seccomp.is_some() && !checked.process.no_new_privileges
}

/// Loads the container's filter, as late as can be: what the process does
/// afterwards (one capset, if any, and the exec) must pass it.
pub(super) fn load_seccomp(checked: &Checked) -> Result<(), AgentError> {
    let Some(filter) = &checked.seccomp else {
        return Ok(());
    };
    filter.load().map_err(|e| {
        let why = match e {
            Errno::INVAL => "the kernel takes it for no valid program".to_owned(),
            e => e.to_string(),
        };
        let problem = format!("loading the seccomp filter failed: {why}");
        AgentError::invalid("process.seccomp", problem)
    })?;
    if keeps_right(checked) {
        let plan: &CapabilityPlan = &checked.capabilities;
        plan.drop_extra().map_err(|e| {
            let problem = format!(
                "dropping capabilities under the seccomp filter failed: {e}; \
                 let the profile allow capset, or set no_new_privileges"
            );
            AgentError::invalid("process.seccomp", problem)
        })?;
    }
    Ok(())
}
