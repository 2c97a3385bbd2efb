//! Whether pods can be given a network, and if not, what exactly is missing.

use crate::cni::directory::Skipped;
use crate::cni::list::NetworkList;
use crate::cni::plugin::{self, Command, PluginError, PluginFailure};
use crate::network::Network;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Why pods cannot be given a network now, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// There is no configuration.
    #[error(
        "no *.conflist in {}{}; install a network plugin, or run `spherule network init`",
        directory.display(),
        skipped_text(.skipped)
    )]
    NoConfiguration {
        /// Where one should be.
        directory: PathBuf,
        /// Files there that are not valid, and why.
        skipped: Vec<String>,
    },
    /// The directory cannot be read.
    #[error("cannot read {}", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin is missing, too old, or says that it is not ready.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The kernel has no TAPs.
    #[error("there is no /dev/net/tun; load the module tun (modprobe tun)")]
    NoTun,
}

fn skipped_text(skipped: &[String]) -> String {
    if skipped.is_empty() {
        return String::new();
    }
    format!(" that is valid ({})", skipped.join("; "))
}

fn describe(skipped: &Skipped) -> String {
    let name = skipped.path.file_name().unwrap_or(skipped.path.as_os_str());
    format!(
        "{} {}",
        name.to_string_lossy(),
        crate::chain_text(&skipped.reason)
    )
}

/// The versions that programs said they speak; asked once a program.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    known: Mutex<HashMap<Program, Option<Vec<String>>>>,
}

/// Path, inode and change time: a program that is replaced is asked again.
type Program = (PathBuf, u64, i64);

impl Versions {
    fn of(&self, program: &Path, timeout: Duration) -> Option<Vec<String>> {
        let metadata = program.metadata().ok()?;
        let key = (program.to_owned(), metadata.ino(), metadata.ctime());
        let known = |versions: &Self| {
            let known = versions
                .known
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            known.get(&key).cloned()
        };
        if let Some(known) = known(self) {
            return known;
        }
        let spoken = plugin::versions(program, timeout);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key, spoken.clone());
        spoken
    }
}

impl Network {
    /// Whether a pod could be given a network now.
    ///
    /// # Errors
    ///
    /// The first thing that is missing.
    pub fn status(&self) -> Result<Arc<NetworkList>, NotReady> {
        let list = self.current_list()?;
        if !Path::new("/dev/net/tun").exists() {
            return Err(NotReady::NoTun);
        }
        let mut chain = self.chain(&list);
        chain.timeout = self.aside_timeout();
        for (conf, program) in chain.programs()? {
            if let Some(spoken) = self.versions.of(&program, chain.timeout)
                && !spoken.iter().any(|v| v == list.version.as_str())
            {
                let failure = PluginFailure::Version {
                    wanted: list.version,
                    spoken,
                };
                return Err(chain.error(conf, Command::Version, failure).into());
            }
        }
        chain.status()?;
        Ok(list)
    }

    /// The first valid configuration.
    pub(crate) fn current_list(&self) -> Result<Arc<NetworkList>, NotReady> {
        let directory = self.directory.path();
        let contents = self
            .directory
            .contents()
            .map_err(|source| NotReady::Directory {
                directory: directory.to_owned(),
                source,
            })?;
        contents
            .list
            .as_ref()
            .map(|(_, list)| list.clone())
            .ok_or_else(|| NotReady::NoConfiguration {
                directory: directory.to_owned(),
                skipped: contents.skipped.iter().map(describe).collect(),
            })
    }
}
