//! Pod manifests: hostile text in, a checked [`Manifest`] out, or every fault
//! of it by path.

mod downward;
mod env;
mod ephemeral;
mod names;
mod read;
mod stream;
mod types;
mod unsupported;
mod validate;
mod volumes;

pub use downward::{FieldRef, ResourceFieldRef};
pub use env::*;
pub use quantity::{Quantity, QuantityError};
pub use stream::Stream;
pub use types::*;
pub use volumes::*;

pub(crate) use downward::{Field, Place};
pub(crate) use ephemeral::with_ephemeral;
pub(crate) use validate::{Faults, metadata as check_metadata};

use names::{is_dns_label, is_dns_subdomain};

use serde_json::Value;
use std::fmt;

/// Faults listed at most; a manifest with more is told so.
const MAX_FAULTS: usize = 100;

/// Users, and groups, that a pod with `hostUsers: false` has, as a kubelet gives
/// them.
pub(crate) const USER_NAMESPACE_IDS: u32 = 65536;

/// One fault of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// As the API server writes it: `spec.containers[0].image`.
    pub path: String,
    /// What is wrong with it and what to do.
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() || self.path == "." {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More text than is looked at.
    #[error(
        "the manifest has {bytes} bytes; at most {} are accepted",
        read::MAX_BYTES
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Neither YAML nor JSON, or past a bound while being read.
    #[error("the manifest cannot be read: {0}")]
    Syntax(String),
    /// Nothing in it.
    #[error("the manifest is empty; it must hold one v1 Pod")]
    Empty,
    /// Other objects, but no pod.
    #[error("the manifest holds no v1 Pod; objects alone are given by `spherule apply`")]
    NoPod,
    /// Two pods.
    #[error("the manifest holds several pods; send one v1 Pod at a time")]
    SeveralPods,
    /// A pod where objects are wanted.
    #[error("the manifest holds a Pod; pods are run by `spherule run`")]
    UnwantedPod,
    /// What each field's fault is, one a line.
    #[error("the manifest cannot be run as it is:\n{}", lines(.0))]
    Fields(Vec<FieldError>),
}

fn lines(errors: &[FieldError]) -> String {
    let mut shown: Vec<String> = errors
        .iter()
        .take(MAX_FAULTS)
        .map(ToString::to_string)
        .collect();
    if errors.len() > MAX_FAULTS {
        shown.push(format!("and {} more", errors.len() - MAX_FAULTS));
    }
    shown.join("\n")
}

/// Bounds of the node that a manifest is checked against.
#[derive(Debug, Clone, Copy)]
pub struct NodeLimits {
    /// Memory in MiB that a pod's VM can have.
    pub memory_mib: u64,
    /// Pods have a network, so that they can have ports of the node.
    pub network: bool,
}

impl Manifest {
    /// Reads one `v1.Pod` from YAML or JSON and checks all of it.
    ///
    /// # Errors
    /// Lists every fault that was found, fields that are not honoured included.
    pub fn parse(text: &str, limits: &NodeLimits) -> Result<(Self, Value), ManifestError> {
        let stream = Stream::parse(text, limits)?;
        if let Some(object) = stream.objects.first() {
            let message = format!("{}: a pod is wanted here, and nothing else", object.key());
            return Err(ManifestError::Fields(vec![FieldError::new("", message)]));
        }
        stream.pod.ok_or(ManifestError::NoPod)
    }

    /// Reads a pod that was accepted, under the limits of its time, and that
    /// ephemeral containers may have been added to.
    ///
    /// # Errors
    /// As [`Manifest::parse`].
    pub(crate) fn accepted(tree: Value) -> Result<(Self, Value), ManifestError> {
        let limits = NodeLimits {
            memory_mib: u64::MAX,
            network: true,
        };
        let mut errors = Vec::new();
        let pod = stream::pod(tree, &limits, &mut errors);
        pod.ok_or(ManifestError::Fields(errors))
    }
}

/// Reads `tree` as a `T`; fields that `T` does not know are faults, unless they
/// change nothing.
pub(crate) fn typed<T: for<'de> serde::Deserialize<'de>>(
    tree: &Value,
    errors: &mut Vec<FieldError>,
) -> Result<T, FieldError> {
    let mut ignored = Vec::new();
    let typed = read::typed(tree, &mut ignored);
    let judged = ignored.iter();
    errors.extend(judged.filter_map(|path| unsupported::judge(tree, path)));
    typed
}

#[cfg(test)]
mod tests;
