//! Generates the PodService and ImageService types, clients and servers (no
//! protoc needed).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../../proto/spherule/v1/pod.proto");
    let files = protox::compile(["spherule/v1/pod.proto"], ["../../proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
