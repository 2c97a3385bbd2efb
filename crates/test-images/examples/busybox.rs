//! Writes the busybox image that the manifests under tests/pods name into an
//! archive: `cargo run -p test-images --example busybox busybox.tar`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: busybox FILE")?;
    std::fs::write(
        path,
        test_images::busybox_image("localhost/busybox:demo")?.archive()?,
    )?;
    Ok(())
}
