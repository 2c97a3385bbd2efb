//! The program `peer` (`peer/main.rs`), two ends of a connection, and an image with it.

use crate::{Compression, ImageBuilder, Layer, busybox_image};
use std::io;
use std::path::Path;
use std::process::Command;

/// Compiles `peer` as a static program, for guests and hosts alike, into a file.
///
/// # Errors
/// If there is no rustc, or it fails.
pub fn compile_peer(into: &Path) -> io::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/main.rs");
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "--edition",
            "2024",
            "-C",
            "opt-level=2",
            "-C",
            "panic=abort",
        ])
        .args(["-C", "strip=symbols", "-C", "target-feature=+crt-static"])
        .args(["-C", "relocation-model=static", "-o"])
        .args([into, &source])
        .output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("rustc peer/main.rs: {words}")));
    }
    Ok(())
}

/// The busybox image with this program as `/bin/peer`.
pub fn peer_image(reference: &str, peer: &Path) -> io::Result<ImageBuilder> {
    let layer = Layer::default().file("bin/peer", 0o755, &std::fs::read(peer)?)?;
    Ok(busybox_image(reference)?.layer(layer.into_bytes()?, Compression::Gzip))
}
