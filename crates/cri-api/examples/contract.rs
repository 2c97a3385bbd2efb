//! Prints a proto file's contract, one field, enum value or call a line, for
//! comparison with another copy of the CRI or to renew the test's list:
//!
//! ```text
//! cargo run -p cri-api --example contract -- <root> <file below root>
//! ```

#[path = "../tests/contract/lines.rs"]
mod lines;

use anyhow::{Context as _, Result};
use prost_reflect::DescriptorPool;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().context("no root directory given")?;
    let file = arguments.next().context("no proto file given")?;
    let files = protox::compile([&file], [&root]).with_context(|| format!("compile {file}"))?;
    let pool = DescriptorPool::from_file_descriptor_set(files)?;
    let package = pool
        .get_file_by_name(&file)
        .with_context(|| format!("{file} is not in its own descriptors"))?
        .package_name()
        .to_owned();
    for line in lines::lines(&pool, &package) {
        println!("{line}");
    }
    Ok(())
}
