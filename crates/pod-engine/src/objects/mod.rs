//! What pods refer to by name: ConfigMaps, Secrets, PersistentVolumes and claims
//! on these. Given beside a pod or by themselves, recorded, one table a kind.
//!
//! [`types`] are their shapes, [`check`] the API server's checks, [`limits`] a volume's annotations, [`bind`] finds a
//! volume for a claim, [`plan`] says what an application of several changes (pure),
//! [`store`] keeps them.

mod bind;
mod check;
mod limits;
mod plan;
mod store;
mod types;

pub use plan::{Applied, Outcome};
pub use store::ObjectSummary;
pub use types::{Bytes, Kind, Object, ObjectKey};

pub(crate) use check::{check_host_path, is_key, read};
pub(crate) use limits::io_limits;
pub(crate) use store::Objects;
pub(crate) use types::HostPath;

/// Why objects were not kept, or not removed; objects are named by kind and name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Set for good by its author.
    #[error(
        "{0} is immutable and cannot be changed; give another name, or delete it first (`spherule delete`)"
    )]
    Immutable(String),
    /// Part of an object that never changes.
    #[error("{object}: {field} cannot be changed; delete it first (`spherule delete`)")]
    Fixed {
        /// Which one.
        object: String,
        /// The part.
        field: &'static str,
    },
    /// A volume has one claim.
    #[error("{claim}: {volume} belongs to {owner} already; name another volume")]
    Claimed {
        /// Who wants it.
        claim: String,
        /// What it wants.
        volume: String,
        /// Who has it.
        owner: String,
    },
    /// A volume that is not what a claim asks for.
    #[error("{claim}: {volume} does not suit it: {message}")]
    Unsuited {
        /// Who wants it.
        claim: String,
        /// What it wants.
        volume: String,
        /// What is missing.
        message: String,
    },
    /// Something needs it.
    #[error("{object} is used by {user}; remove that first")]
    InUse {
        /// Which one.
        object: String,
        /// By whom.
        user: String,
    },
    /// The node keeps no more.
    #[error("this node keeps at most {most} {what}; delete some first (`spherule delete`)")]
    TooMany {
        /// How many.
        most: usize,
        /// Of what.
        what: &'static str,
    },
}
