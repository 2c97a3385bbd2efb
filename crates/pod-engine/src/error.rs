//! Why the engine refused or failed a call.

use crate::manifest::ManifestError;
use crate::objects::ObjectError;
use crate::sizing::SizeError;

pub(crate) use sandbox::chain;

/// What kind of fault an [`EngineError`] is, for mapping to status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    InvalidArgument,
    /// No such pod or container.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Right request, wrong moment.
    FailedPrecondition,
    /// The node cannot hold it.
    ResourceExhausted,
    /// The daemon's own fault.
    Internal,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The manifest is not one this engine can run; every fault is listed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A pod of that name exists.
    #[error(
        "pod {namespace}/{name} exists already (id {id}); remove it first (`spherule rm {namespace}/{name}`) or choose another name"
    )]
    NameTaken {
        /// Namespace of both.
        namespace: String,
        /// Name of both.
        name: String,
        /// Id of the one that has it.
        id: String,
    },
    /// No pod is called that.
    #[error("no pod is called {0:?}; `spherule ps` lists them")]
    NoSuchPod(String),
    /// A prefix of several ids.
    #[error("{prefix:?} is the beginning of {count} pod ids; give more of its digits")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// The pod has no container of that name.
    #[error("pod {pod} has no container {container:?}; it has: {known}")]
    NoSuchContainer {
        /// The pod's namespace and name.
        pod: String,
        /// What was asked for.
        container: String,
        /// The names it has, separated by commas.
        known: String,
    },
    /// An ephemeral container needs a pod, and a target, that runs.
    #[error("no container can be added to pod {pod}: {message}")]
    NotRunning {
        /// The pod's namespace and name.
        pod: String,
        /// What does not run.
        message: String,
    },
    /// The image of an ephemeral container cannot be had.
    #[error("{message} ({reason})")]
    Image {
        /// The kubelet's word for it.
        reason: &'static str,
        /// What is in the way.
        message: String,
    },
    /// A running pod is removed only by force.
    #[error("pod {0} is still running; stop it first (`spherule stop {0}`) or remove it by force")]
    StillRunning(String),
    /// The node is configured for no more pods.
    #[error("{0} pods exist, as many as this node takes; remove some first")]
    TooManyPods(usize),
    /// The VM that the pod would need is none that this node has.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Part of the pod could not be removed; it is tried again.
    #[error("pod {pod} could not be removed yet: {message}")]
    NotRemoved {
        /// The pod's namespace and name.
        pod: String,
        /// What is in the way.
        message: String,
    },
    /// The record could not be read or written.
    #[error("the record of pod {pod} could not be kept: {message}")]
    State {
        /// Id of the pod, or "(all)".
        pod: String,
        /// What the store said.
        message: String,
    },
    /// An object cannot be kept or removed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// An object's record could not be read or written.
    #[error("the record of {object} could not be kept: {message}")]
    ObjectState {
        /// Its kind and name, or "(all)".
        object: String,
        /// What the store said.
        message: String,
    },
    /// A pod's volumes are not in line with their objects.
    #[error("the volumes of pod {pod} could not be written: {message}")]
    Volumes {
        /// The pod's namespace and name.
        pod: String,
        /// What is in the way.
        message: String,
    },
    /// A task of the engine died.
    #[error("internal error: {0}")]
    Task(String),
    /// A file or directory of a pod could not be made or removed.
    #[error("{path}: {source}")]
    Files {
        /// The path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl EngineError {
    /// The fault's kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Manifest(_) | Self::Size(_) | Self::Ambiguous { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::NameTaken { .. } => ErrorKind::AlreadyExists,
            Self::NoSuchPod(_) | Self::NoSuchContainer { .. } => ErrorKind::NotFound,
            Self::StillRunning(_) | Self::NotRunning { .. } | Self::Image { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::TooManyPods(_) | Self::Object(ObjectError::TooMany { .. }) => {
                ErrorKind::ResourceExhausted
            }
            Self::Object(_) => ErrorKind::FailedPrecondition,
            Self::NotRemoved { .. }
            | Self::State { .. }
            | Self::ObjectState { .. }
            | Self::Volumes { .. }
            | Self::Task(_)
            | Self::Files { .. } => ErrorKind::Internal,
        }
    }
}
