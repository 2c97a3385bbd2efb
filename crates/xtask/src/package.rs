//! `cargo xtask package`: a Debian package to install the node agent from, with its
//! service for systemd.

use crate::binaries::{self, Profile};
use crate::run::{checked, step};
use crate::{guest, kernel, packages};
use anyhow::{Context, ensure};
use rustix::fs::Mode;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is written as it is: place in the package, mode, contents.
const TEXTS: &[(&str, u32, &str)] = &[
    (
        "usr/lib/systemd/system/spherule.service",
        0o644,
        include_str!("package/spherule.service"),
    ),
    (
        "etc/default/spherule",
        0o644,
        include_str!("package/default"),
    ),
    (
        "usr/share/doc/spherule/copyright",
        0o644,
        include_str!("package/copyright"),
    ),
    ("DEBIAN/conffiles", 0o644, "/etc/default/spherule\n"),
    ("DEBIAN/postinst", 0o755, include_str!("package/postinst")),
    ("DEBIAN/prerm", 0o755, include_str!("package/prerm")),
    ("DEBIAN/postrm", 0o755, include_str!("package/postrm")),
];
/// Directory of a registry's hosts.toml files, for the node's owner to fill.
const REGISTRIES: &str = "etc/spherule/certs.d";
/// What else a reader of the package finds, from the checkout.
const DOCS: &str = "usr/share/doc/spherule";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack what `cargo xtask setup` has built for the tests, and build nothing
    #[arg(long)]
    as_built: bool,
    /// Where the package is to lie [default: target/package]
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Builds all that a node needs, and the package of it; prints its path.
pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let spherule = if args.as_built {
        root.join("target/debug/spherule")
    } else {
        packages::ensure(&[packages::KERNEL])?;
        kernel::ensure(root)?;
        guest::ensure(root)?;
        binaries::build(root, Profile::Release, &[])?.spherule
    };

    step("packing");
    let output = args.output.clone();
    let output = output.unwrap_or_else(|| root.join("target/package"));
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    // The package has the modes that its files have here.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let tree = tempfile::tempdir_in(&output)?;
    let tree = Tree(tree.path());
    tree.copy(&spherule, "usr/bin/spherule", 0o755)?;
    let vmm = spherule.with_file_name("spherule-vmm");
    tree.copy(&vmm, "usr/bin/spherule-vmm", 0o755)?;
    for file in ["vmlinux", "initramfs.cpio"] {
        let built = root.join("target/guest").join(file);
        tree.copy(&built, &format!("usr/lib/spherule/{file}"), 0o644)?;
    }
    let readme = root.join("README.md");
    tree.copy(&readme, &format!("{DOCS}/README.md"), 0o644)?;
    // The licence of the kernel wants what it was made from.
    for part in ["README.md", "config", "patches"] {
        let part = format!("guest-kernel/{part}");
        tree.copy_all(&root.join(&part), &format!("{DOCS}/{part}"))?;
    }
    fs::create_dir_all(tree.0.join(REGISTRIES))?;
    for (place, mode, text) in TEXTS {
        tree.write(place, *mode, text.as_bytes())?;
    }
    let completions = stdout(Command::new(&spherule).args(["completions", "bash"]))?;
    let place = "usr/share/bash-completion/completions/spherule";
    tree.write(place, 0o644, completions.as_bytes())?;
    tree.write("DEBIAN/control", 0o644, control()?.as_bytes())?;

    let package = format!("spherule_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
    let package = output.join(package);
    fs::set_permissions(tree.0, Permissions::from_mode(0o755))?;
    checked(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zzstd", "--build"])
            .args([tree.0, &package])
            .stdout(Stdio::null()),
    )?;
    println!("{}", package.display());
    Ok(())
}

/// The package's own fields.
fn control() -> anyhow::Result<String> {
    // The binaries want the C library that they were linked with, or a newer one.
    let libc = stdout(Command::new("dpkg-query").args(["-W", "-f=${Version}", "libc6"]))?;
    let libc = libc.split('-').next().unwrap_or_default();
    Ok(include_str!("package/control")
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@LIBC@", libc))
}

fn stdout(command: &mut Command) -> anyhow::Result<String> {
    let out = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(out.status.success(), "{command:?} failed: {}", out.status);
    Ok(String::from_utf8(out.stdout)?)
}

/// The directory that becomes the package.
struct Tree<'a>(&'a Path);

impl Tree<'_> {
    fn write(&self, place: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.0.join(place);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(fs::set_permissions(&path, Permissions::from_mode(mode))?)
    }

    fn copy(&self, from: &Path, place: &str, mode: u32) -> anyhow::Result<()> {
        let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.write(place, mode, &bytes)
    }

    /// A file, or a directory of files.
    fn copy_all(&self, from: &Path, place: &str) -> anyhow::Result<()> {
        if !from.is_dir() {
            return self.copy(from, place, 0o644);
        }
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let name = entry.file_name();
            self.copy_all(&entry.path(), &format!("{place}/{}", name.display()))?;
        }
        Ok(())
    }
}
