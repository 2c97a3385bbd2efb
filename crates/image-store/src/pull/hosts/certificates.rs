//! Whom a host is believed by (`ca`), and what it is shown (`client`). Files are
//! relative to the directory of `hosts.toml`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::HostsError;

/// One file or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a file or a list of files")]
pub(super) enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// The value of `client` in containerd's three forms.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "client: expected [[\"CERTIFICATE\", \"KEY\"]], or a file with both"
)]
pub(super) enum ClientFiles {
    /// Certificate and key in one file.
    One(PathBuf),
    /// The same, in a list.
    Many(Vec<PathBuf>),
    /// Certificate and key, or both in one.
    Pairs(Vec<Vec<PathBuf>>),
}

fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    fs::read(path).map_err(|source| HostsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The certificates that the host's own is believed by, besides the system's.
pub(super) fn trusted(
    files: Option<OneOrMany>,
    dir: &Path,
) -> Result<Vec<reqwest::Certificate>, HostsError> {
    let files = match files {
        None => return Ok(Vec::new()),
        Some(OneOrMany::One(file)) => vec![file],
        Some(OneOrMany::Many(files)) => files,
    };
    let mut certificates = Vec::new();
    for file in files {
        let path = dir.join(file);
        let found = reqwest::Certificate::from_pem_bundle(&read(&path)?).unwrap_or_default();
        if found.is_empty() {
            return Err(HostsError::Certificate { path });
        }
        certificates.extend(found);
    }
    Ok(certificates)
}

/// The certificate, with its key, that the host is shown.
pub(super) fn identity(
    files: Option<ClientFiles>,
    path: &Path,
    dir: &Path,
) -> Result<Option<reqwest::Identity>, HostsError> {
    let mut pairs = match files {
        None => return Ok(None),
        Some(ClientFiles::One(file)) => vec![vec![file]],
        Some(ClientFiles::Many(files)) => files.into_iter().map(|file| vec![file]).collect(),
        Some(ClientFiles::Pairs(pairs)) => pairs,
    };
    let files = match (pairs.pop(), pairs.is_empty()) {
        (Some(files), true) if matches!(files.len(), 1 | 2) => files,
        _ => {
            return Err(HostsError::Value {
                path: path.to_owned(),
                key: "client".to_owned(),
                message: "must be one certificate with its key; a host is shown no other".into(),
            });
        }
    };
    let mut pem = Vec::new();
    for file in &files {
        pem.extend(read(&dir.join(file))?);
        pem.push(b'\n');
    }
    let identity = reqwest::Identity::from_pem(&pem);
    identity.map(Some).map_err(|source| HostsError::Client {
        path: dir.join(&files[0]),
        source,
    })
}
