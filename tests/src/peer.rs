//! The program `peer`, for tests and measurements of networks: compiled once a
//! process, run on hosts as it is and in pods from an image.

use crate::Daemon;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The busybox image with `/bin/peer`; see [`import_peer`].
pub const PEER_IMAGE: &str = "localhost/peer:test";

/// The program's file. It lies beside this process's own program.
pub fn peer() -> anyhow::Result<&'static Path> {
    static COMPILED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| compile().map_err(|error| format!("{error:#}")));
    match compiled {
        Ok(path) => Ok(path),
        Err(error) => Err(anyhow::anyhow!("{error}")),
    }
}

fn compile() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let path = this.with_file_name("peer");
    // Replaced in one step: another process may be running it.
    let new = this.with_file_name(format!("peer.{}", std::process::id()));
    test_images::compile_peer(&new)?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}

/// Gives a daemon [`PEER_IMAGE`].
pub fn import_peer(daemon: &Daemon) -> anyhow::Result<()> {
    let archive = daemon.dir().join("peer.tar");
    std::fs::write(
        &archive,
        test_images::peer_image(PEER_IMAGE, peer()?)?.archive()?,
    )?;
    let archive = archive.to_str().context("a plain name")?;
    daemon.cli(["import", archive])?.ok()?;
    Ok(())
}
