//! Generates the message types from spherule/wire/v1/wire.proto (no protoc needed).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../../proto/spherule/wire/v1/wire.proto");
    let files = protox::compile(["spherule/wire/v1/wire.proto"], ["../../proto"])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
