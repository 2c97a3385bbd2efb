//! The guest kernel: source, configuration, build, measurement.
//!
//! What is built is kept under `target/guest-kernel/<key>/`, the key being a
//! digest of everything that decides its bytes; `target/guest/vmlinux` is the
//! current one. A build that was made once costs nothing again.

mod compile;
mod config;
mod key;
mod measure;
mod source;

use crate::packages;
use crate::run::step;
use anyhow::{Context, bail};
use source::Source;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Arguments of `cargo xtask kernel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Count the instructions until the first program runs, under QEMU
    #[arg(long)]
    measure: bool,
    /// Print the measurement as JSON (implies --measure)
    #[arg(long)]
    json: bool,
    /// Build again in a folder of its own and compare the bytes with the kept kernel
    #[arg(long)]
    verify: bool,
}

/// `cargo xtask kernel`.
pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let vmlinux = ensure(root)?;
    if args.verify {
        verify(root, &vmlinux)?;
    }
    if args.json {
        let counts = measure::measure(root, &vmlinux)?;
        println!(
            "{}",
            serde_json::to_string_pretty(&measure::to_json(&counts))?
        );
    } else if args.measure {
        packages::ensure(&[packages::RUN])?;
        measure::print(&measure::measure(root, &vmlinux)?);
    } else {
        println!("{}", vmlinux.display());
    }
    Ok(())
}

/// Instructions from power-on until the guest agent of this checkout would run,
/// on one vCPU.
pub(crate) fn instructions_until_agent(root: &Path, vmlinux: &Path) -> anyhow::Result<u64> {
    let counts = measure::measure(root, vmlinux)?;
    let with_agent = counts.iter().rfind(|count| count.vcpus == 1);
    with_agent
        .map(|count| count.instructions)
        .context("nothing was measured")
}

/// Makes sure that the guest kernel of this checkout is built; returns
/// `target/guest/vmlinux`, an uncompressed ELF image with a PVH note.
pub(crate) fn ensure(root: &Path) -> anyhow::Result<PathBuf> {
    let folder = root.join("target/guest-kernel");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Two builds at once would tread on each other's objects.
    let lock = File::create(folder.join(".lock")).context("cannot make the build's lock file")?;
    if lock.try_lock().is_err() {
        step("waiting for another build of the guest kernel");
        lock.lock()
            .context("cannot lock the guest kernel's build")?;
    }

    let recipe = Recipe::read(root)?;
    let kept = folder.join(&recipe.key);
    if !kept.join("vmlinux").is_file() {
        recipe.build(&folder.join("work"), &kept)?;
    }
    publish(&kept.join("vmlinux"), &root.join("target/guest/vmlinux"))
}

/// Everything that decides the kernel's bytes.
struct Recipe {
    source: Source,
    patches: Vec<PathBuf>,
    config: config::Wanted,
    key: String,
}

impl Recipe {
    fn read(root: &Path) -> anyhow::Result<Self> {
        let inputs = root.join("guest-kernel");
        if !tool_runs("gcc") || !tool_runs("ld") {
            packages::ensure(&[packages::KERNEL])?;
        }
        let source = source::find(&inputs)?;
        let patches = source::patches(&inputs.join("patches"))?;
        let config = config::Wanted::read(&inputs.join("config"))?;
        let key = key::of(&source, &patches, &config)?;
        Ok(Self {
            source,
            patches,
            config,
            key,
        })
    }

    /// Builds in a folder below `work`, then moves the result to `kept` in one step.
    fn build(&self, work: &Path, kept: &Path) -> anyhow::Result<()> {
        packages::ensure(&[packages::KERNEL])?;
        let tree = source::unpack(&self.source, &self.patches, work)?;
        // Below the tree: the compiler sees relative paths only, so that no byte
        // depends on where this checkout lies.
        let objects = tree.join("objects");
        step(&format!("building the guest kernel ({})", self.source));
        compile::configure(&tree, &objects, &self.config)?;
        compile::build(&tree, &objects)?;
        compile::keep(&objects, kept)
    }
}

/// Builds again from nothing in another folder, and compares.
fn verify(root: &Path, vmlinux: &Path) -> anyhow::Result<()> {
    let recipe = Recipe::read(root)?;
    let elsewhere = tempfile::Builder::new()
        .prefix("verify-")
        .tempdir_in(root.join("target/guest-kernel"))
        .context("cannot make a folder for the second build")?;
    let kept = elsewhere.path().join("kept");
    recipe.build(&elsewhere.path().join("another/work"), &kept)?;
    let (first, second) = (fs::read(vmlinux)?, fs::read(kept.join("vmlinux"))?);
    if first != second {
        let at = first.iter().zip(&second).position(|(a, b)| a != b);
        bail!(
            "the guest kernel is not reproducible: {} and {} bytes, first difference at {at:?}",
            first.len(),
            second.len()
        );
    }
    println!(
        "reproducible: two builds in two folders gave the same {} bytes",
        first.len()
    );
    Ok(())
}

/// Makes `to` name the file `from`, at once for whoever opens it.
fn publish(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let same = |a: &Path, b: &Path| -> std::io::Result<bool> {
        let (a, b) = (fs::metadata(a)?, fs::metadata(b)?);
        Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
    };
    if same(from, to).unwrap_or(false) {
        return Ok(to.to_owned());
    }
    let folder = to.parent().context("a kernel lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let link = folder.join(".vmlinux.new");
    let _ = fs::remove_file(&link);
    fs::hard_link(from, &link)
        .and_then(|()| fs::rename(&link, to))
        .with_context(|| format!("cannot put {} in its place", to.display()))?;
    Ok(to.to_owned())
}

fn tool_runs(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_replaces_an_older_kernel_and_keeps_a_current_one() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let place = folder.path().join("guest/vmlinux");
        fs::write(&old, "old").unwrap();
        fs::write(&new, "new").unwrap();
        publish(&old, &place).unwrap();
        publish(&new, &place).unwrap();
        publish(&new, &place).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"new");
        assert_eq!(fs::read(&old).unwrap(), b"old");
    }
}
