//! What is written down of a pod's network, before and while it is made.
//!
//! The caller keeps the [`NetworkRecord`] in its own store, from before
//! [`Network::attach`](crate::Network::attach) to after
//! [`Network::remove`](crate::Network::remove). A copy that is ahead of it by the
//! steps in between is kept beside the namespaces (`<run>/network/<id>.json`):
//! that directory goes with a reboot, and so do namespaces and rules; what
//! outlives a reboot, addresses given, DEL frees by the caller's record.

use crate::MacAddr;
use crate::cni::list::NetworkList;
use crate::cni::request::{Capabilities, PodIdentity};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How far a pod's network has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Nothing has been made.
    Planned,
    /// The namespace, and perhaps some plugins' work, may be there.
    Attaching,
    /// All is there.
    Attached,
    /// Some of it may be gone.
    Removing,
}

/// All that is needed to give a pod its network and to take it away again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Whose it is.
    pub pod: PodIdentity,
    /// The namespace's file.
    pub netns: PathBuf,
    /// Name of the first interface (CNI_IFNAME).
    pub interface: String,
    /// The configuration as it was when the pod's network was planned: DEL is
    /// by this one, whatever the directory holds by then.
    pub list: NetworkList,
    /// What the plugins get as runtime configuration.
    pub capabilities: Capabilities,
    /// Whether frames of another's address are dropped.
    pub anti_spoofing: bool,
    /// Queues of each TAP.
    pub queues: u16,
    /// How far it has come.
    pub phase: Phase,
    /// The host's start in which it was planned.
    #[serde(default)]
    pub boot: String,
    /// The last result of ADD, as the plugin answered it (cniVersion set).
    #[serde(default)]
    pub result: Option<Value>,
    /// The interfaces that the guest has.
    #[serde(default)]
    pub nics: Vec<NicRecord>,
}

/// One interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRecord {
    /// Its name in the namespace and in the guest.
    pub name: String,
    /// The TAP joined to it.
    pub tap: String,
    /// Its Ethernet address, in the namespace and in the guest.
    pub mac: MacAddr,
    /// Bytes.
    pub mtu: u32,
}

/// What tells this start of the host from others; empty where the kernel does not say.
pub(crate) fn this_boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The copy of a record beside the namespaces could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path}", path = path.display())]
pub struct CacheError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The copies of records, a file each.
#[derive(Debug)]
pub(crate) struct RecordCache {
    directory: PathBuf,
}

impl RecordCache {
    pub(crate) fn open(directory: PathBuf) -> Result<Self, CacheError> {
        fs::create_dir_all(&directory).map_err(|source| CacheError {
            step: "make",
            path: directory.clone(),
            source,
        })?;
        Ok(Self { directory })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// Replaces the copy in one step. Not synced: it has to outlive this process,
    /// not the machine.
    pub(crate) fn put(&self, record: &NetworkRecord) -> Result<(), CacheError> {
        let path = self.path(&record.pod.sandbox_id);
        // The suffix keeps it apart from any id's copy.
        let temporary = path.with_extension("json.new");
        let write = || {
            let bytes = serde_json::to_vec(record)?;
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| CacheError {
            step: "write",
            path: path.clone(),
            source,
        })
    }

    /// The copy, if there is a whole one.
    pub(crate) fn get(&self, id: &str) -> Result<Option<NetworkRecord>, CacheError> {
        let path = self.path(id);
        let fail = |source| CacheError {
            step: "read",
            path: path.clone(),
            source,
        };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| fail(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(fail(e)),
        }
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), CacheError> {
        let path = self.path(id);
        for path in [path.with_extension("json.new"), path] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(CacheError {
                        step: "remove",
                        path,
                        source: e,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The ids that have a copy.
    pub(crate) fn ids(&self) -> Result<Vec<String>, CacheError> {
        names(&self.directory, ".json")
    }
}

/// Names of the files of a directory that end so, without that end.
pub(crate) fn names(directory: &Path, end: &str) -> Result<Vec<String>, CacheError> {
    let list = || {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
    };
    let names = list().map_err(|source| CacheError {
        step: "list",
        path: directory.to_owned(),
        source,
    })?;
    Ok(names
        .iter()
        .filter_map(|name| Some(name.strip_suffix(end)?.to_owned()))
        .collect())
}
