//! What the black-box tests share: the built programs, a daemon of their own,
//! what this machine can do.

pub mod cri;
mod daemon;
pub mod guest;
mod host;
mod machine;
pub mod manifest;
mod output;
mod peer;
mod registries;
pub mod websocket;

pub use daemon::{Daemon, DaemonOptions};
pub use host::Host;
pub use machine::{Machine, lacking, machine, short};
pub use output::Ran;
pub use peer::{PEER_IMAGE, import_peer, peer};
pub use registries::Registries;

use std::path::{Path, PathBuf};

/// The image that most tests run, imported into every [`Daemon`].
pub const IMAGE: &str = "localhost/busybox:demo";

/// The top of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// A program that `cargo xtask setup` built, from the profile of this test: it
/// lies in `target/<profile>`, this test there or one folder below.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let found = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|p| p.exists());
    found.unwrap_or_else(|| PathBuf::from(name))
}

/// The directory with the guest's kernel and initramfs.
pub fn guest_dir() -> PathBuf {
    checkout().join("target/guest")
}
