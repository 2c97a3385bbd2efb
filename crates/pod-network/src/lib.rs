//! The host's half of pod networking: a network namespace a pod, CNI plugins as
//! they are, and TAPs for the VM. Knows no VM, no pod engine, no CRI.
//!
//! | call | what it does |
//! |------|--------------|
//! | [`Network::status`] | says whether pods can be given a network, or exactly what is missing |
//! | [`Network::plan`] | decides all about a pod's network; makes nothing |
//! | [`Network::attach`] | namespace, ADD, TAPs; all or nothing |
//! | [`Network::check`] | CHECK, and whether namespace and TAPs are there |
//! | [`Network::adopt`] | what a running pod's guest was given, after a restart |
//! | [`Network::reopen`] | the same with new descriptors of the TAPs, for a new VM |
//! | [`Network::counters`] | traffic of each interface |
//! | [`Network::remove`] | DEL and the rest; to be called again until it succeeds |
//! | [`Network::strays`], [`Network::remove_stray`] | finds and removes what no record knows |
//! | [`Network::collect_garbage`] | GC |
//! | [`default_list::write`] | lays down a configuration for the reference plugins |
//!
//! Every call blocks, for as long as a plugin's deadline at most a plugin; an
//! async caller uses a blocking thread (spawn_blocking). A call is never undone
//! by its caller going away.
//!
//! Threads: [`Network`] is `Send + Sync`. Calls for one sandbox take turns; calls for
//! several run side by side, and only GC has all others wait. No other lock is held
//! across a plugin's run.
//! Threads that enter a namespace are made for it and end there. Plugins run in
//! the network namespace of the calling thread, the host's.

mod adopt;
mod annotations;
mod anti_spoof;
mod attach;
mod cni;
pub mod default_list;
mod error;
mod leftovers;
mod mac;
mod netlink;
mod netns;
mod network;
mod nic;
mod record;
mod redirect;
mod remove;
mod status;
mod sweep;
mod sysctls;
mod tap;

pub use adopt::NicCounters;
pub use annotations::AnnotationError;
pub use anti_spoof::TooManyAddresses;
pub use attach::Attachment;
pub use cni::answer::{Dns, ResultError};
pub use cni::directory::{SkipReason, Skipped};
pub use cni::list::{ListError, NetworkList, PluginConf};
pub use cni::plugin::{Command, PluginError, PluginFailure};
pub use cni::request::{Bandwidth, Capabilities, DnsRequest, IpRange, PodIdentity, PortMapping};
pub use cni::version::SpecVersion;
pub use error::NetworkError;
pub use leftovers::LeftoverError;
pub use mac::{MacAddr, NotAMac};
pub use netlink::NetlinkError;
pub use netns::NetnsError;
pub use network::{AttachRequest, Network, NetworkConfig};
pub use nic::{Neighbour, Nic, NicError, Route};
pub use record::{CacheError, NetworkRecord, NicRecord, Phase};
pub use status::NotReady;
pub use sweep::Collected;
pub use sysctls::path as sysctl_path;
pub use tap::{TapError, VNET_HEADER_LEN};

/// An error and its causes in one line, for people.
#[must_use]
pub fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
