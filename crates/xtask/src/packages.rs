//! Debian packages: installed where root runs us, otherwise the exact command is
//! printed.

use crate::run::{checked, step};
use anyhow::bail;
use std::process::{Command, Stdio};

/// For the guest kernel's build.
pub(crate) const KERNEL: &[&str] = &[
    "bc",
    "bison",
    "flex",
    "gcc",
    "libelf-dev",
    "libssl-dev",
    "linux-source-6.12",
    "make",
    "patch",
    "xz-utils",
];
/// For running pods: disks, the fallback engine, the plugins of the
/// default network and what they run.
pub(crate) const RUN: &[&str] = &[
    "containernetworking-plugins",
    "e2fsprogs",
    "iptables",
    "qemu-system-x86",
    "xfsprogs",
];
/// For the demo's image and its network namespace.
pub(crate) const DEMO: &[&str] = &["busybox-static", "iproute2"];
/// For tests: a real registry, a second opinion on EROFS images, namespaces that
/// play hosts, and what serves and filters in them.
pub(crate) const TEST: &[&str] = &[
    "dnsmasq-base",
    "docker-registry",
    "erofs-utils",
    "fio",
    "iproute2",
    "nftables",
];

/// For measurements of files.
pub(crate) const BENCH: &[&str] = &["fio"];

/// Makes sure that these packages are installed.
pub(crate) fn ensure(groups: &[&[&'static str]]) -> anyhow::Result<()> {
    let missing: Vec<&str> = groups
        .iter()
        .flat_map(|g| g.iter())
        .filter(|p| !installed(p))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!(
            "packages are missing; as root, run:\n\n    apt-get install --no-install-recommends {list}\n"
        );
    }
    step(&format!("installing packages: {list}"));
    checked(Command::new("apt-get").args(["update", "-qq"]))?;
    checked(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Where a package starts a service on install: not ours to start.
            .env("RUNLEVEL", "1")
            .stdout(Stdio::null()),
    )
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|out| out.stdout == b"installed")
}
