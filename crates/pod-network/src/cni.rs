//! The container network interface: configuration lists, plugins, results.
//!
//! After the specification (SPEC.md of containernetworking/cni), versions 0.3.1
//! to 1.1.0. Plugins run in the namespace of the calling thread, the host's; the
//! pod's they get as a path.

pub(crate) mod answer;
pub(crate) mod chain;
pub(crate) mod directory;
pub(crate) mod list;
pub(crate) mod plugin;
pub(crate) mod process;
pub(crate) mod request;
pub(crate) mod version;
