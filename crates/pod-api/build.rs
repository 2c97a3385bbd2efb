//! Generates the PodService and ImageService types, clients and servers (no
//! protoc needed), and keeps their descriptors for printing messages as JSON.

use prost::Message as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../../proto/spherule/v1/pod.proto");
    let files = protox::compile(["spherule/v1/pod.proto"], ["../../proto"])?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("descriptors.bin"),
        files.encode_to_vec(),
    )?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
