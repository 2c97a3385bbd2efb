//! Is there a QEMU that the engine can work with?

use super::command;
use std::process::{Command, Stdio};
use vm_spec::QemuSupport;

/// Oldest QEMU whose microvm machine has all the devices.
const OLDEST: (u32, u32) = (7, 0);

/// Looks for QEMU and asks it for its version, which takes some 20 ms.
pub(crate) fn probe() -> QemuSupport {
    let Some(path) = command::find() else {
        return QemuSupport {
            detail: format!("QEMU is not installed; {}", command::INSTALL),
            ..QemuSupport::default()
        };
    };
    let mut support = QemuSupport {
        path: path.display().to_string(),
        ..QemuSupport::default()
    };
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(e) => {
            support.detail = format!("{} cannot be run: {e}", support.path);
            return support;
        }
    };
    match version(&text) {
        Some((major, minor, text)) => {
            text.clone_into(&mut support.version);
            support.usable = (major, minor) >= OLDEST;
            if !support.usable {
                support.detail = format!(
                    "QEMU {text} is too old; {}.{} or later is needed",
                    OLDEST.0, OLDEST.1
                );
            }
        }
        None => support.detail = format!("{} does not say its version", support.path),
    }
    support
}

/// Finds the version in "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)".
fn version(text: &str) -> Option<(u32, u32, &str)> {
    let rest = text.split_once("version ")?.1;
    let version = rest.split([' ', '\n']).next()?;
    let mut numbers = version.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_found_in_what_qemu_prints() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(version(debian), Some((7, 2, "7.2.22")));
        assert_eq!(
            version("QEMU emulator version 9.1.0\n"),
            Some((9, 1, "9.1.0"))
        );
        for nonsense in ["", "version ", "version x.y", "version 7"] {
            assert_eq!(version(nonsense), None, "{nonsense:?}");
        }
    }
}
