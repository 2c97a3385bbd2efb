//! Generates the message types from spherule/vmm/v1/vmm.proto (no protoc needed).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../../proto/spherule/vmm/v1/vmm.proto");
    let files = protox::compile(["spherule/vmm/v1/vmm.proto"], ["../../proto"])?;
    prost_build::Config::new()
        .extern_path(".spherule.wire.v1", "::wire::proto")
        .compile_fds(files)?;
    Ok(())
}
