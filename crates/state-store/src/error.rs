//! What can go wrong with the record store.

use std::path::PathBuf;

/// A failed operation on the record store.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process (or another handle in this one) has the file open.
    #[error("another daemon uses this root: {} is locked; stop it, or choose another --root", path.display())]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The file's content fails its checks.
    #[error(
        "the state database {} is damaged: restore it from a backup, or stop all pods, \
         move the file away and start again (its records are lost then)",
        path.display()
    )]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What redb found.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file is of a format that this build does not read.
    #[error(
        "the state database {} is of a format this build does not know: run the release that wrote it",
        path.display()
    )]
    Format {
        /// The database file.
        path: PathBuf,
        /// What redb found.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file or its directory could not be created or opened.
    #[error("cannot open the state database {}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<redb::Error>,
    },
    /// A read or write of an open database failed (a full disk, for example).
    #[error("cannot {operation} in the state database {}", path.display())]
    Access {
        /// What was tried: "read a record", "commit".
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record without the header every record begins with.
    #[error("record {key:?} of table {table} has no valid header")]
    Header {
        /// The table's name.
        table: &'static str,
        /// The record's key.
        key: String,
    },
    /// A record written by a later release.
    #[error(
        "record {key:?} of table {table} has version {found}, this build knows up to {known}: \
         run the release that wrote it, or a later one"
    )]
    TooNew {
        /// The table's name.
        table: &'static str,
        /// The record's key.
        key: String,
        /// The version in the record.
        found: u32,
        /// The version of this build.
        known: u32,
    },
    /// A record of an earlier release that this build cannot upgrade.
    #[error(
        "record {key:?} of table {table} has version {found}, which this build (version {known}) \
         cannot upgrade: start a release in between first"
    )]
    TooOld {
        /// The table's name.
        table: &'static str,
        /// The record's key.
        key: String,
        /// The version in the record.
        found: u32,
        /// The version of this build.
        known: u32,
    },
    /// A record that does not fit its type.
    #[error("record {key:?} of table {table} cannot be read")]
    Decode {
        /// The table's name.
        table: &'static str,
        /// The record's key.
        key: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// A value that JSON cannot express.
    #[error("record {key:?} of table {table} cannot be written as JSON")]
    Encode {
        /// The table's name.
        table: &'static str,
        /// The record's key.
        key: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
}
