//! What a container's process is: the image's configuration and the manifest,
//! merged as the kubelet does.

use crate::env::Vars;
use crate::expand::expand;
use crate::manifest::{Container, PodSecurityContext, SecurityContext};
use sandbox::{ProcessSpec, capabilities};

/// PATH of a container whose image and manifest name none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The part of an image's configuration that counts here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
}

/// Why a container cannot be configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MergeError {
    #[error("neither the manifest nor the image says what to run; set command in the manifest")]
    NoCommand,
    #[error("runAsNonRoot is set, but the container would run as root; set runAsUser")]
    WouldBeRoot,
    #[error(
        "runAsNonRoot is set, but the image's user {0:?} is no number, so that it cannot be verified; set runAsUser"
    )]
    CannotVerify(String),
}

/// The process of `container`, whose own variables are `own`, in a pod whose host
/// name is `hostname`.
pub(crate) fn process(
    container: &Container,
    pod: &PodSecurityContext,
    image: &ImageDefaults,
    own: &Vars,
    hostname: &str,
) -> Result<ProcessSpec, MergeError> {
    let context = &container.security_context;
    let uid = context.run_as_user.or(pod.run_as_user);
    let gid = context.run_as_group.or(pod.run_as_group);
    if context.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        check_non_root(uid, &image.user)?;
    }
    let cwd = match (container.working_dir.as_str(), image.working_dir.as_str()) {
        ("", "") => "/",
        ("", dir) | (dir, _) => dir,
    };
    Ok(ProcessSpec {
        args: args(container, image, own)?,
        env: env(image, own, hostname),
        cwd: cwd.to_owned(),
        user: image.user.clone(),
        uid: uid.and_then(|id| u32::try_from(id).ok()),
        gid: gid.and_then(|id| u32::try_from(id).ok()),
        additional_gids: pod
            .supplemental_groups
            .iter()
            .chain(&pod.fs_group)
            .filter_map(|id| u32::try_from(*id).ok())
            .collect(),
        capabilities: granted(context),
        no_new_privileges: context.allow_privilege_escalation == Some(false),
        terminal: container.tty,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        ..ProcessSpec::default()
    })
}

/// The capabilities of a checked manifest.
fn granted(context: &SecurityContext) -> Vec<String> {
    let named = |list: &[String]| -> Vec<_> {
        list.iter()
            .filter_map(|name| capabilities::parse(name))
            .collect()
    };
    let wish = &context.capabilities;
    let (add, drop) = (named(&wish.add), named(&wish.drop));
    capabilities::full_names(&capabilities::granted(context.privileged, &add, &drop))
}

fn check_non_root(uid: Option<i64>, image_user: &str) -> Result<(), MergeError> {
    if let Some(uid) = uid {
        return if uid == 0 {
            Err(MergeError::WouldBeRoot)
        } else {
            Ok(())
        };
    }
    let name = image_user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(0) => Err(MergeError::WouldBeRoot),
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() || name == "root" => Err(MergeError::WouldBeRoot),
        Err(_) => Err(MergeError::CannotVerify(name.to_owned())),
    }
}

fn env(image: &ImageDefaults, own: &Vars, hostname: &str) -> Vec<String> {
    let mut vars = Vars::default();
    vars.set("PATH", DEFAULT_PATH.to_owned());
    vars.set("HOSTNAME", hostname.to_owned());
    for var in &image.env {
        let (name, value) = var.split_once('=').unwrap_or((var, ""));
        vars.set(name, value.to_owned());
    }
    for (name, value) in &own.0 {
        vars.set(name, value.clone());
    }
    vars.0
        .into_iter()
        .map(|(n, v)| format!("{n}={v}"))
        .collect()
}

/// A command replaces the image's entrypoint and cmd, args only its cmd.
fn args(
    container: &Container,
    image: &ImageDefaults,
    own: &Vars,
) -> Result<Vec<String>, MergeError> {
    let expanded = |list: &[String]| -> Vec<String> {
        list.iter()
            .map(|text| expand(text, |name| own.get(name)))
            .collect()
    };
    let mut args = if container.command.is_empty() {
        image.entrypoint.clone()
    } else {
        expanded(&container.command)
    };
    if !container.args.is_empty() {
        args.extend(expanded(&container.args));
    } else if container.command.is_empty() {
        args.extend(image.cmd.iter().cloned());
    }
    if args.is_empty() {
        return Err(MergeError::NoCommand);
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Manifest, NodeLimits};

    fn image() -> ImageDefaults {
        ImageDefaults {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/bin".into(), "FROM=image".into()],
            working_dir: "/srv".into(),
            user: "app".into(),
        }
    }

    fn merge(container: &str, pod: &str, image: &ImageDefaults) -> Result<ProcessSpec, MergeError> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  securityContext: {{{pod}}}\n  containers:\n  - {{name: c, image: i, {container}}}\n"
        );
        let limits = NodeLimits {
            memory_mib: 1024,
            network: true,
        };
        let manifest = Manifest::parse(&text, &limits).unwrap().0;
        let spec = &manifest.spec;
        let mut own = Vars::default();
        for var in &spec.containers[0].env {
            own.set(&var.name, var.value.clone());
        }
        process(
            &spec.containers[0],
            &spec.security_context,
            image,
            &own,
            "host",
        )
    }

    fn args_of(container: &str) -> Vec<String> {
        merge(container, "", &image()).unwrap().args
    }

    #[test]
    fn command_and_args_replace_what_kubernetes_says_they_do() {
        assert_eq!(args_of(""), ["/entry", "default"]);
        assert_eq!(args_of("args: [a]"), ["/entry", "a"]);
        assert_eq!(args_of("command: [c]"), ["c"]);
        assert_eq!(args_of("command: [c], args: [a]"), ["c", "a"]);
        let nothing = merge("", "", &ImageDefaults::default());
        assert_eq!(nothing, Err(MergeError::NoCommand));
    }

    #[test]
    fn own_variables_stand_over_the_images_and_expand_arguments() {
        let process = merge(
            "args: ['$(A)', '$(FROM)', '$$(A)'], env: [{name: A, value: '1'}, {name: FROM, value: pod}]",
            "fsGroup: 7",
            &image(),
        )
        .unwrap();
        assert_eq!(process.args, ["/entry", "1", "pod", "$(A)"]);
        assert_eq!(
            process.env,
            ["PATH=/bin", "HOSTNAME=host", "FROM=pod", "A=1"]
        );
        assert_eq!(process.additional_gids, [7]);
    }

    #[test]
    fn container_context_wins_over_the_pods() {
        let process = merge(
            "securityContext: {runAsUser: 5, allowPrivilegeEscalation: false}",
            "runAsUser: 1, runAsGroup: 2, supplementalGroups: [3]",
            &image(),
        )
        .unwrap();
        assert_eq!((process.uid, process.gid), (Some(5), Some(2)));
        assert_eq!(process.additional_gids, [3]);
        assert!(process.no_new_privileges);
        assert_eq!(process.cwd, "/srv");
    }

    #[test]
    fn run_as_non_root_is_enforced() {
        let root = ImageDefaults {
            user: String::new(),
            ..image()
        };
        let number = ImageDefaults {
            user: "65534:1".into(),
            ..image()
        };
        assert_eq!(
            merge("", "runAsNonRoot: true", &root),
            Err(MergeError::WouldBeRoot)
        );
        assert_eq!(
            merge("", "runAsNonRoot: true", &image()),
            Err(MergeError::CannotVerify("app".into()))
        );
        assert!(merge("", "runAsNonRoot: true", &number).is_ok());
        assert!(merge("", "runAsNonRoot: true, runAsUser: 7", &root).is_ok());
        assert_eq!(
            merge("", "runAsNonRoot: true, runAsUser: 0", &number),
            Err(MergeError::WouldBeRoot)
        );
    }
}
