//! Generates the message types from spherule/guest/v1/guest.proto (no protoc needed).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../../proto/spherule/guest/v1/guest.proto");
    let files = protox::compile(["spherule/guest/v1/guest.proto"], ["../../proto"])?;
    prost_build::Config::new()
        .extern_path(".spherule.wire.v1", "::wire::proto")
        .compile_fds(files)?;
    Ok(())
}
