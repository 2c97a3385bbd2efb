//! Versioned, atomic records on disk; what they mean is their owner's business.
//!
//! One [`StateStore`] is one redb file. It holds named tables of records, a
//! record being a JSON document behind a small header that carries the version
//! of its layout. A write is on the disk
//! when the call returns, so a daemon killed at any moment loses nothing that
//! it was told had succeeded.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
//! # struct Pod { name: String }
//! let store = state_store::StateStore::open(&dir.path().join("state.redb"))?;
//! let pods = store.table::<Pod>("pods", 1);
//! pods.put("a1", &Pod { name: "web".into() })?;
//! store.transaction(|tx| {
//!     tx.remove(&pods, "a1")?;
//!     tx.put(&pods, "a2", &Pod { name: "db".into() })
//! })?;
//! assert_eq!(pods.get("a1")?, None);
//! assert_eq!(pods.list()?.len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! [`Recorded`] is one record kept in memory as well, for those who read it often
//! or wait for it to change.
//!
//! Threads: every type is `Send + Sync`; stores and tables are cheap to clone.
//! Calls block, a write for the time of an fsync (milliseconds). Writers take
//! turns; readers see the last commit and wait for nobody. A transaction holds the one writer
//! lock until it ends, so no other lock may be taken inside it that another
//! thread could hold while it writes here.
//!
//! # Format of a record
//!
//! | bytes | content |
//! |-------|---------|
//! | 0..4  | magic `SPR1` (the header's own version is the last byte) |
//! | 4..8  | record version, little endian, chosen by the table's owner |
//! | 8..   | the record as JSON (UTF-8) |

mod error;
mod record;
mod recorded;
mod store;
mod table;

pub use error::StateError;
pub use recorded::{Recorded, RecordedError};
pub use store::{StateStore, Transaction};
pub use table::{Table, Upgrade};
