//! What a container's process is: the image's configuration and the request,
//! merged as Kubernetes' runtimes do.

use crate::error::CriError;
use crate::mounts::absolute;
use cri_api::v1::ContainerConfig;
use image_store::ImageConfig;
use sandbox::ProcessSpec;

/// PATH of a container whose image and request name none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process, without what the security context says of it.
pub(crate) fn merge(
    config: &ContainerConfig,
    image: &ImageConfig,
    hostname: &str,
) -> Result<ProcessSpec, CriError> {
    Ok(ProcessSpec {
        args: args(config, image)?,
        env: env(config, image, hostname)?,
        cwd: cwd(config, image)?,
        user: image.user.clone(),
        terminal: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin && config.stdin_once,
        ..ProcessSpec::default()
    })
}

/// A command replaces the image's entrypoint and cmd, args only its cmd.
fn args(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, CriError> {
    let (command, args) = (&config.command, &config.args);
    for (field, list) in [("config.command", command), ("config.args", args)] {
        if list.iter().any(|text| text.contains('\0')) {
            return Err(CriError::invalid(field, "contains a zero byte"));
        }
    }
    let mut all = if command.is_empty() {
        image.entrypoint.clone()
    } else {
        command.clone()
    };
    if !args.is_empty() {
        all.extend(args.iter().cloned());
    } else if command.is_empty() {
        all.extend(image.cmd.iter().cloned());
    }
    if all.is_empty() {
        return Err(CriError::invalid(
            "config.command",
            "neither the request nor the image says what to run",
        ));
    }
    Ok(all)
}

fn env(
    config: &ContainerConfig,
    image: &ImageConfig,
    hostname: &str,
) -> Result<Vec<String>, CriError> {
    let mut vars = vec![
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOSTNAME".to_owned(), hostname.to_owned()),
    ];
    if config.tty {
        vars.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    for var in &image.env {
        let (name, value) = var.split_once('=').unwrap_or((var, ""));
        set(&mut vars, name, value.to_owned());
    }
    for (index, var) in config.envs.iter().enumerate() {
        let field = |part: &str| format!("config.envs[{index}].{part}");
        let name = var.key.as_str();
        if name.is_empty() || name.contains(['=', '\0']) {
            let message = format!("{name:?} is no name of a variable");
            return Err(CriError::invalid(field("key"), message));
        }
        let value = std::str::from_utf8(&var.value).ok();
        let Some(value) = value.filter(|value| !value.contains('\0')) else {
            let message = format!("the value of {name} is not UTF-8 text without zero bytes");
            return Err(CriError::invalid(field("value"), message));
        };
        set(&mut vars, name, value.to_owned());
    }
    Ok(vars.into_iter().map(|(n, v)| format!("{n}={v}")).collect())
}

fn set(vars: &mut Vec<(String, String)>, name: &str, value: String) {
    match vars.iter_mut().find(|(known, _)| known == name) {
        Some(var) => var.1 = value,
        None => vars.push((name.to_owned(), value)),
    }
}

/// The request's directory, the image's, or the root; an image's may lack its
/// first slash.
fn cwd(config: &ContainerConfig, image: &ImageConfig) -> Result<String, CriError> {
    match (config.working_dir.as_str(), image.working_dir.as_str()) {
        ("", "") => Ok("/".to_owned()),
        ("", own) if own.starts_with('/') => Ok(own.to_owned()),
        ("", own) => Ok(format!("/{own}")),
        (asked, _) => {
            absolute("config.working_dir", asked)?;
            Ok(asked.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri_api::v1::KeyValue;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/bin".into(), "FROM=image".into(), "BARE".into()],
            working_dir: "srv".into(),
            user: "app".into(),
            ..ImageConfig::default()
        }
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn config(command: &[&str], args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            command: words(command),
            args: words(args),
            ..ContainerConfig::default()
        }
    }

    fn var(key: &str, value: &[u8]) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.to_vec(),
        }
    }

    #[test]
    fn command_and_args_replace_what_kubernetes_says_they_do() {
        let of = |command: &[&str], args: &[&str]| {
            merge(&config(command, args), &image(), "h").unwrap().args
        };
        assert_eq!(of(&[], &[]), ["/entry", "default"]);
        assert_eq!(of(&[], &["a"]), ["/entry", "a"]);
        assert_eq!(of(&["c"], &[]), ["c"]);
        assert_eq!(of(&["c"], &["a"]), ["c", "a"]);
        let nothing = merge(&config(&[], &[]), &ImageConfig::default(), "h");
        assert!(
            nothing
                .unwrap_err()
                .to_string()
                .starts_with("config.command")
        );
    }

    #[test]
    fn variables_of_the_request_win() {
        let with = ContainerConfig {
            envs: vec![var("FROM", b"pod"), var("A", b"1=2")],
            tty: true,
            ..config(&[], &[])
        };
        let process = merge(&with, &image(), "web").unwrap();
        let wanted = [
            "PATH=/bin",
            "HOSTNAME=web",
            "TERM=xterm",
            "FROM=pod",
            "BARE=",
            "A=1=2",
        ];
        assert_eq!(process.env, wanted);
        assert!(process.terminal);
        assert_eq!(
            (process.user.as_str(), process.cwd.as_str()),
            ("app", "/srv")
        );
    }

    #[test]
    fn malformed_parts_are_refused_by_field() {
        let refused = |change: fn(&mut ContainerConfig), field: &str| {
            let mut with = config(&[], &[]);
            change(&mut with);
            let error = merge(&with, &image(), "h").unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        };
        refused(|c| c.envs = vec![var("", b"")], "config.envs[0].key");
        refused(|c| c.envs = vec![var("A=B", b"")], "config.envs[0].key");
        refused(|c| c.envs = vec![var("A", b"\xff")], "config.envs[0].value");
        refused(|c| c.envs = vec![var("A", b"\0")], "config.envs[0].value");
        refused(|c| c.args = vec!["\0".into()], "config.args");
        refused(|c| c.working_dir = "srv".into(), "config.working_dir");
    }
}
