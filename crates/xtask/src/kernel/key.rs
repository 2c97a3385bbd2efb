//! The name under which a built kernel is kept: a digest of all that decides
//! its bytes.

use super::config::Wanted;
use super::source::Source;
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Raised when the build itself changes in a way that changes the kernel.
const BUILD_VERSION: u32 = 1;

/// The key of this source, configuration and tool chain, in 32 hexadecimal digits.
pub(super) fn of(source: &Source, patches: &[PathBuf], config: &Wanted) -> anyhow::Result<String> {
    let mut parts = vec![
        BUILD_VERSION.to_string(),
        source.to_string(),
        config.text.clone(),
    ];
    for patch in patches {
        let text = fs::read_to_string(patch)
            .with_context(|| format!("cannot read {}", patch.display()))?;
        parts.push(text);
    }
    for tool in ["gcc", "ld"] {
        parts.push(version(tool)?);
    }
    Ok(digest(&parts))
}

/// A digest in which no two lists of parts run into one another.
pub(super) fn digest(parts: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hex: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex[..32].to_owned()
}

fn version(tool: &str) -> anyhow::Result<String> {
    let out = Command::new(tool)
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run {tool}; the guest kernel's build needs it"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    match text.lines().next() {
        Some(line) if out.status.success() => Ok(line.to_owned()),
        _ => bail!("{tool} --version failed: {}", out.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_tells_parts_apart() {
        let of =
            |parts: &[&str]| digest(&parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab", "c"]), of(&["abc"]));
    }
}
