//! What goes wrong with a pod's network.

use crate::anti_spoof::TooManyAddresses;
use crate::cni::plugin::PluginError;
use crate::leftovers::LeftoverError;
use crate::netlink::NetlinkError;
use crate::netns::NetnsError;
use crate::nic::NicError;
use crate::record::CacheError;
use crate::status::NotReady;
use crate::tap::TapError;
use std::io;
use std::path::PathBuf;

/// A pod's network could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A directory of ours could not be made.
    #[error("cannot make directory {path}", path = path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Pods cannot be given a network now.
    #[error("the pod network is not ready")]
    NotReady(#[source] NotReady),
    /// A part of the pod's identity would be misread by plugins.
    #[error("the pod's {part} {value:?} cannot be given to CNI plugins")]
    Identity {
        /// Which part.
        part: &'static str,
        /// What it is.
        value: String,
    },
    /// The interface's name does not fit.
    #[error("{0:?} is no name for a pod's network interface")]
    InterfaceName(String),
    /// The record is of another step of a pod's life.
    #[error("the network of sandbox {id} is {phase:?}, not {wanted:?}")]
    Phase {
        /// The sandbox.
        id: String,
        /// As the record has it.
        phase: crate::Phase,
        /// As the call needs it.
        wanted: crate::Phase,
    },
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The stored result is no longer one.
    #[error("the stored CNI result of sandbox {id} is damaged")]
    StoredResult {
        /// The sandbox.
        id: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The interfaces that the plugins made.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The VM's TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// TAP and CNI interface could not be joined.
    #[error("cannot join TAP and CNI interface {interface}")]
    Join {
        /// The CNI interface.
        interface: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The kernel's figures or links could not be read or deleted.
    #[error("cannot work on the links of sandbox {id}")]
    Links {
        /// The sandbox.
        id: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// More addresses than anti-spoofing can hold.
    #[error(transparent)]
    AntiSpoofing(#[from] TooManyAddresses),
    /// Our copy of the record.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A plugin that was running when the daemon was killed.
    #[error(transparent)]
    Leftover(#[from] LeftoverError),
    /// Attaching failed, and so did undoing it: some of it is still there.
    #[error("attaching failed, and undoing it too ({}); remove the network again later", crate::chain_text(.undo))]
    NotUndone {
        /// Why attaching failed.
        #[source]
        cause: Box<NetworkError>,
        /// Why undoing failed.
        undo: Box<NetworkError>,
    },
}
