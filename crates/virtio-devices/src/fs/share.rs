//! The handle by which shares come and go while the VM runs.

use super::host_file::Status;
use super::request::Name;
use super::table::{ShareAccess, Table};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most shares of one device.
const MAX_SHARES: usize = 1024;

/// Why a share could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The name cannot be that of a directory entry.
    #[error("{0:?} cannot be the name of a share")]
    Name(String),
    /// Another file or directory has this name already.
    #[error("another share is named {0:?}")]
    NameTaken(String),
    /// There is no share of this name.
    #[error("there is no share named {0:?}")]
    NoSuchShare(String),
    /// The descriptor is of something that cannot be shared.
    #[error("{0:?} is neither a directory nor a regular file")]
    Type(String),
    /// There are as many shares as can be.
    #[error("there are {MAX_SHARES} shares, as many as can be; detach some")]
    TooMany,
    /// The host refused to tell about the file.
    #[error("the state of {name:?} cannot be read")]
    Inspect {
        /// The share asked for.
        name: String,
        /// What the host said.
        #[source]
        source: Errno,
    },
}

/// A share as [`FsHandle::shares`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedShare {
    /// Its name in the root of the device.
    pub name: String,
    /// What the guest may change in it.
    pub access: ShareAccess,
}

/// Attaches directories and files to a device and takes them away, from any
/// thread.
#[derive(Clone, Debug)]
pub struct FsHandle {
    table: Arc<Mutex<Table>>,
    busy: Arc<Mutex<()>>,
}

impl FsHandle {
    pub(super) fn new(table: Arc<Mutex<Table>>, busy: Arc<Mutex<()>>) -> Self {
        FsHandle { table, busy }
    }

    /// Puts a directory or regular file (a descriptor that may be O_PATH) into
    /// the device's root. The same file under the same name again changes the
    /// access to it.
    ///
    /// # Errors
    /// If the name is taken or none, or the file is something else.
    pub fn attach(&self, name: &str, root: OwnedFd, access: ShareAccess) -> Result<(), ShareError> {
        if Name::new(name.as_bytes()).is_err() {
            return Err(ShareError::Name(name.to_owned()));
        }
        let status = Status::of(root.as_fd()).map_err(|source| ShareError::Inspect {
            name: name.to_owned(),
            source,
        })?;
        let kinds = [FileType::Directory, FileType::RegularFile];
        if !kinds.contains(&status.file_type()) {
            return Err(ShareError::Type(name.to_owned()));
        }
        let mut table = self.table();
        if table.shares().len() >= MAX_SHARES {
            return Err(ShareError::TooMany);
        }
        if !table.attach(name, root, &status, access) {
            return Err(ShareError::NameTaken(name.to_owned()));
        }
        Ok(())
    }

    /// Takes a share away, after the request that is being done. What the guest
    /// still has open there answers ESTALE or EBADF.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn detach(&self, name: &str) -> Result<(), ShareError> {
        if !self.table().detach(name) {
            return Err(ShareError::NoSuchShare(name.to_owned()));
        }
        drop(self.busy.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// What is attached, by name.
    pub fn shares(&self) -> Vec<NamedShare> {
        self.table()
            .shares()
            .into_iter()
            .map(|(name, access)| NamedShare { name, access })
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
