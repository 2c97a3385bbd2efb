//! A container's filter of system calls, from the profile it asks for.

use crate::error::CriError;
use crate::security::Seccomp;
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest profile in bytes.
const MAX_PROFILE: u64 = 1 << 20;

/// The filter's instructions; none: no filter.
pub(crate) async fn program(wanted: Seccomp, capabilities: &[String]) -> Result<Vec<u8>, CriError> {
    match wanted {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::RuntimeDefault => Ok(seccomp_profile::runtime_default(capabilities)),
        Seccomp::File(path) => {
            let capabilities = capabilities.to_vec();
            let task = tokio::task::spawn_blocking(move || from_file(&path, &capabilities));
            task.await
                .map_err(|_| CriError::TaskDied("a seccomp profile".to_owned()))?
        }
    }
}

fn from_file(path: &Path, capabilities: &[String]) -> Result<Vec<u8>, CriError> {
    let refused = |reason: String| {
        CriError::invalid(
            "config.linux.security_context.seccomp.localhost_ref",
            format!("{}: {reason}", path.display()),
        )
    };
    let text = read(path).map_err(|error| refused(error.to_string()))?;
    seccomp_profile::from_json(&text, capabilities).map_err(|error| refused(sandbox::chain(&error)))
}

/// A regular file of the node, whole. Not blocking: it may be a FIFO.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::other("no regular file"));
    }
    let mut text = Vec::new();
    File::from(file)
        .take(MAX_PROFILE + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_PROFILE {
        return Err(io::Error::other(format!("larger than {MAX_PROFILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).is_err());
        assert!(read(Path::new("/dev/zero")).is_err());
        assert!(read(&dir.path().join("none")).is_err());
        let file = dir.path().join("profile");
        std::fs::write(&file, "{}").unwrap();
        assert_eq!(read(&file).unwrap(), b"{}");
        let large = File::create(&file).unwrap();
        large.set_len(MAX_PROFILE + 1).unwrap();
        assert!(read(&file).is_err());
    }

    #[tokio::test]
    async fn missing_profile_is_the_requests_fault() {
        let wanted = Seccomp::File("/nowhere/profile.json".into());
        let error = program(wanted, &[]).await.unwrap_err().to_string();
        assert!(error.contains("localhost_ref: /nowhere"), "{error}");
    }

    #[tokio::test]
    async fn default_filters_and_unconfined_does_not() {
        let of = async |wanted| program(wanted, &[]).await.unwrap().len();
        assert!(of(Seccomp::RuntimeDefault).await > 0);
        assert_eq!(of(Seccomp::Unconfined).await, 0);
    }
}
