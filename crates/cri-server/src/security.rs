//! Security contexts: users, groups, profiles, paths.
//!
//! A guest has no AppArmor and no SELinux: of AppArmor the runtime's default and
//! unconfined ask for nothing that the VM's border does not give; named profiles,
//! and all SELinux options, are refused.

use crate::error::CriError;
use crate::mounts::absolute;
use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::{
    Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, SeLinuxOption,
    SecurityProfile, SupplementalGroupsPolicy,
};
use sandbox::PathRules;
use std::path::PathBuf;

/// Which filter of system calls a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seccomp {
    Unconfined,
    RuntimeDefault,
    /// Of the node, absolute.
    File(PathBuf),
}

/// Who a container's first process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// To be looked up in the image; empty: the image's own user.
    pub(crate) name: String,
    pub(crate) groups: Vec<u32>,
    pub(crate) strict_groups: bool,
}

/// The number of a user or group; `None` stays that.
fn id(field: String, value: Option<&Int64Value>) -> Result<Option<u32>, CriError> {
    let Some(value) = value.map(|value| value.value) else {
        return Ok(None);
    };
    // -1 is "no change" to the kernel.
    match u32::try_from(value).ok().filter(|id| *id != u32::MAX) {
        Some(id) => Ok(Some(id)),
        None => Err(CriError::invalid(
            field,
            format!("{value} is no user or group id"),
        )),
    }
}

fn strict(context: &str, policy: i32) -> Result<bool, CriError> {
    match SupplementalGroupsPolicy::try_from(policy) {
        Ok(policy) => Ok(policy == SupplementalGroupsPolicy::Strict),
        Err(_) => Err(CriError::invalid(
            format!("{context}.supplemental_groups_policy"),
            format!("{policy} is no policy"),
        )),
    }
}

fn groups(context: &str, groups: &[i64]) -> Result<Vec<u32>, CriError> {
    let field = || format!("{context}.supplemental_groups");
    let one = |value: &i64| id(field(), Some(&Int64Value { value: *value }));
    let all: Result<Vec<Option<u32>>, CriError> = groups.iter().map(one).collect();
    Ok(all?.into_iter().flatten().collect())
}

/// Who the first process is; a group without a user is refused.
pub(crate) fn user(context: &str, of: &LinuxContainerSecurityContext) -> Result<User, CriError> {
    let uid = id(format!("{context}.run_as_user"), of.run_as_user.as_ref())?;
    let gid = id(format!("{context}.run_as_group"), of.run_as_group.as_ref())?;
    let name = of.run_as_username.as_str();
    if uid.is_some() && !name.is_empty() {
        return Err(CriError::invalid(
            format!("{context}.run_as_username"),
            "only one of run_as_user and run_as_username can be set",
        ));
    }
    if name.contains([':', '\0', '\n']) {
        return Err(CriError::invalid(
            format!("{context}.run_as_username"),
            format!("{name:?} is no user name"),
        ));
    }
    if gid.is_some() && uid.is_none() && name.is_empty() {
        return Err(CriError::invalid(
            format!("{context}.run_as_group"),
            "a group without a user; set run_as_user or run_as_username too",
        ));
    }
    Ok(User {
        uid,
        gid,
        name: name.to_owned(),
        groups: groups(context, &of.supplemental_groups)?,
        strict_groups: strict(context, of.supplemental_groups_policy)?,
    })
}

fn check_selinux(context: &str, options: Option<&SeLinuxOption>) -> Result<(), CriError> {
    let set = options.is_some_and(|o| {
        [&o.user, &o.role, &o.r#type, &o.level]
            .into_iter()
            .any(|part| !part.is_empty())
    });
    if set {
        return Err(CriError::invalid(
            format!("{context}.selinux_options"),
            "the pod's virtual machine has a kernel without SELinux; leave the options out: the VM itself separates the pod from the node",
        ));
    }
    Ok(())
}

/// Refuses what no guest's kernel enforces. `old` is the profile's old spelling.
fn check_apparmor(
    context: &str,
    profile: Option<&SecurityProfile>,
    old: &str,
) -> Result<(), CriError> {
    let refused = |field: &str, name: &str| {
        CriError::invalid(
            format!("{context}.{field}"),
            format!(
                "the AppArmor profile {name:?} cannot be loaded: the pod's virtual machine has a kernel without AppArmor; use RuntimeDefault, or a seccomp profile"
            ),
        )
    };
    if let Some(profile) = profile {
        return match profile_type(&format!("{context}.apparmor"), profile)? {
            ProfileType::RuntimeDefault | ProfileType::Unconfined => Ok(()),
            ProfileType::Localhost => Err(refused("apparmor", &profile.localhost_ref)),
        };
    }
    match old {
        "" | "runtime/default" | "unconfined" => Ok(()),
        other => Err(refused("apparmor_profile", other)),
    }
}

fn profile_type(field: &str, profile: &SecurityProfile) -> Result<ProfileType, CriError> {
    let kind = ProfileType::try_from(profile.profile_type).map_err(|_| {
        CriError::invalid(
            format!("{field}.profile_type"),
            format!("{} is no profile type", profile.profile_type),
        )
    })?;
    if kind != ProfileType::Localhost && !profile.localhost_ref.is_empty() {
        return Err(CriError::invalid(
            format!("{field}.localhost_ref"),
            "only for a profile of type Localhost",
        ));
    }
    Ok(kind)
}

/// The filter asked for. `old` is its old spelling.
fn seccomp(
    context: &str,
    profile: Option<&SecurityProfile>,
    old: &str,
) -> Result<Seccomp, CriError> {
    let file = |field: String, path: &str| {
        absolute(&field, path)?;
        Ok(Seccomp::File(PathBuf::from(path)))
    };
    if let Some(profile) = profile {
        let field = format!("{context}.seccomp");
        return match profile_type(&field, profile)? {
            ProfileType::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
            ProfileType::Unconfined => Ok(Seccomp::Unconfined),
            ProfileType::Localhost => {
                file(format!("{field}.localhost_ref"), &profile.localhost_ref)
            }
        };
    }
    let field = format!("{context}.seccomp_profile_path");
    match old {
        "" | "unconfined" => Ok(Seccomp::Unconfined),
        "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(path) => file(field, path),
            None => Err(CriError::invalid(
                field,
                format!("{other:?} is none of unconfined, runtime/default, localhost/<path>"),
            )),
        },
    }
}

/// Refuses what a sandbox cannot have. Where nothing runs but containers, its
/// user, groups, root and filter have no effect; they must be right all the same.
pub(crate) fn check_sandbox(
    context: &str,
    of: &LinuxSandboxSecurityContext,
) -> Result<(), CriError> {
    check_selinux(context, of.selinux_options.as_ref())?;
    check_apparmor(context, of.apparmor.as_ref(), "")?;
    #[expect(deprecated, reason = "old kubelets send it")]
    seccomp(context, of.seccomp.as_ref(), &of.seccomp_profile_path)?;
    let uid = id(format!("{context}.run_as_user"), of.run_as_user.as_ref())?;
    let gid = id(format!("{context}.run_as_group"), of.run_as_group.as_ref())?;
    if gid.is_some() && uid.is_none() {
        return Err(CriError::invalid(
            format!("{context}.run_as_group"),
            "a group without a user; set run_as_user too",
        ));
    }
    groups(context, &of.supplemental_groups)?;
    strict(context, of.supplemental_groups_policy)?;
    Ok(())
}

/// The filter of a container; a privileged one has none. What its guest cannot
/// enforce is refused.
pub(crate) fn container_profiles(
    context: &str,
    of: &LinuxContainerSecurityContext,
) -> Result<Seccomp, CriError> {
    check_selinux(context, of.selinux_options.as_ref())?;
    #[expect(deprecated, reason = "old kubelets send them")]
    let (apparmor, old) = (&of.apparmor_profile, &of.seccomp_profile_path);
    check_apparmor(context, of.apparmor.as_ref(), apparmor)?;
    let wanted = seccomp(context, of.seccomp.as_ref(), old)?;
    Ok(if of.privileged {
        Seccomp::Unconfined
    } else {
        wanted
    })
}

/// What of /proc and /sys is hidden or read-only: as the request says; in a
/// privileged container nothing.
pub(crate) fn paths(
    context: &str,
    of: &LinuxContainerSecurityContext,
) -> Result<PathRules, CriError> {
    for (name, paths) in [
        ("masked_paths", &of.masked_paths),
        ("readonly_paths", &of.readonly_paths),
    ] {
        for path in paths {
            absolute(&format!("{context}.{name}"), path)?;
        }
    }
    if of.privileged {
        return Ok(PathRules::default());
    }
    Ok(PathRules {
        masked: of.masked_paths.clone(),
        read_only: of.readonly_paths.clone(),
    })
}

#[cfg(test)]
#[expect(deprecated, reason = "old spellings are tested, too")]
mod tests {
    use super::*;

    fn context() -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext::default()
    }

    fn with(change: fn(&mut LinuxContainerSecurityContext)) -> LinuxContainerSecurityContext {
        let mut of = context();
        change(&mut of);
        of
    }

    fn value(value: i64) -> Option<Int64Value> {
        Some(Int64Value { value })
    }

    fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
        Some(SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: path.into(),
        })
    }

    fn refused<T: std::fmt::Debug>(result: Result<T, CriError>, field: &str) {
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with(&format!("s.{field}:")), "{error}");
    }

    #[test]
    fn users_are_numbers_or_names() {
        let of = with(|c| {
            c.run_as_user = value(1000);
            c.run_as_group = value(7);
            c.supplemental_groups = vec![1, 2];
            c.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        });
        let got = user("s", &of).unwrap();
        assert_eq!((got.uid, got.gid), (Some(1000), Some(7)));
        assert_eq!((got.groups, got.strict_groups), (vec![1, 2], true));
        let of = with(|c| c.run_as_username = "web".into());
        assert_eq!(user("s", &of).unwrap().name, "web");
        assert_eq!(user("s", &context()).unwrap(), User::default());
    }

    #[test]
    fn impossible_users_are_refused_by_field() {
        refused(
            user("s", &with(|c| c.run_as_group = value(7))),
            "run_as_group",
        );
        refused(
            user("s", &with(|c| c.run_as_user = value(-1))),
            "run_as_user",
        );
        refused(
            user("s", &with(|c| c.run_as_user = value(1 << 32))),
            "run_as_user",
        );
        let both = with(|c| {
            c.run_as_user = value(1);
            c.run_as_username = "a".into();
        });
        refused(user("s", &both), "run_as_username");
        let tricky = with(|c| c.run_as_username = "a:0".into());
        refused(user("s", &tricky), "run_as_username");
        let negative = with(|c| c.supplemental_groups = vec![-2]);
        refused(user("s", &negative), "supplemental_groups");
        let unknown = with(|c| c.supplemental_groups_policy = 5);
        refused(user("s", &unknown), "supplemental_groups_policy");
    }

    #[test]
    fn seccomp_profiles_by_type_or_old_spelling() {
        let of = |c: &LinuxContainerSecurityContext| container_profiles("s", c).unwrap();
        assert_eq!(of(&context()), Seccomp::Unconfined);
        let default = with(|c| c.seccomp = profile(ProfileType::RuntimeDefault, ""));
        assert_eq!(of(&default), Seccomp::RuntimeDefault);
        let file = with(|c| c.seccomp = profile(ProfileType::Localhost, "/p.json"));
        assert_eq!(of(&file), Seccomp::File("/p.json".into()));
        let old = with(|c| c.seccomp_profile_path = "runtime/default".into());
        assert_eq!(of(&old), Seccomp::RuntimeDefault);
        let old = with(|c| c.seccomp_profile_path = "localhost//p.json".into());
        assert_eq!(of(&old), Seccomp::File("/p.json".into()));
        let privileged = with(|c| {
            c.privileged = true;
            c.seccomp = profile(ProfileType::RuntimeDefault, "");
        });
        assert_eq!(of(&privileged), Seccomp::Unconfined);
    }

    #[test]
    fn bad_seccomp_profiles_are_refused_by_field() {
        let of = |c: LinuxContainerSecurityContext| container_profiles("s", &c);
        let relative = with(|c| c.seccomp = profile(ProfileType::Localhost, "p.json"));
        refused(of(relative), "seccomp.localhost_ref");
        let climbing = with(|c| c.seccomp = profile(ProfileType::Localhost, "/a/../b"));
        refused(of(climbing), "seccomp.localhost_ref");
        let both = with(|c| c.seccomp = profile(ProfileType::Unconfined, "/p"));
        refused(of(both), "seccomp.localhost_ref");
        let unknown = with(|c| {
            c.seccomp = Some(SecurityProfile {
                profile_type: 9,
                ..SecurityProfile::default()
            });
        });
        refused(of(unknown), "seccomp.profile_type");
        let old = with(|c| c.seccomp_profile_path = "strange".into());
        refused(of(old), "seccomp_profile_path");
    }

    #[test]
    fn what_only_the_nodes_kernel_could_enforce_is_refused() {
        let of = |c: LinuxContainerSecurityContext| container_profiles("s", &c);
        let default = with(|c| c.apparmor = profile(ProfileType::RuntimeDefault, ""));
        assert!(of(default).is_ok());
        let named = with(|c| c.apparmor = profile(ProfileType::Localhost, "x"));
        refused(of(named), "apparmor");
        let old = with(|c| c.apparmor_profile = "localhost/x".into());
        refused(of(old), "apparmor_profile");
        let selinux = with(|c| {
            c.selinux_options = Some(SeLinuxOption {
                level: "s0:c1".into(),
                ..SeLinuxOption::default()
            });
        });
        refused(of(selinux), "selinux_options");
        let empty = with(|c| c.selinux_options = Some(SeLinuxOption::default()));
        assert!(of(empty).is_ok());
    }

    #[test]
    fn paths_are_as_given_and_none_of_a_privileged_container() {
        let given = with(|c| {
            c.masked_paths = vec!["/proc/kcore".into()];
            c.readonly_paths = vec!["/proc/sys".into()];
        });
        let got = paths("s", &given).unwrap();
        assert_eq!((got.masked.len(), got.read_only.len()), (1, 1));
        let privileged = LinuxContainerSecurityContext {
            privileged: true,
            ..given
        };
        assert_eq!(paths("s", &privileged).unwrap(), PathRules::default());
        let relative = with(|c| c.masked_paths = vec!["proc".into()]);
        refused(paths("s", &relative), "masked_paths");
    }
}
