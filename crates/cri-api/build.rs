//! Generates the CRI's messages, clients and servers (no protoc needed), and
//! keeps their descriptors for whoever prints or compares messages.

use prost::Message as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../../proto/cri");
    let files = protox::compile(["runtime/v1/service.proto"], ["../../proto/cri"])?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("descriptors.bin"),
        files.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        // Holds passwords; `src/auth.rs` prints it without.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(files)?;
    Ok(())
}
