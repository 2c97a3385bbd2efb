//! What this machine can do, found once by the product's own probe.

use crate::program;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// Facts that decide which tests can run.
#[derive(Debug)]
pub struct Machine {
    /// Why the kvm engine cannot run here, if so.
    pub no_kvm: Option<String>,
    /// KVM runs ring 0 natively.
    pub kvm_is_fast: bool,
    /// Why the qemu engine cannot run here, if so.
    pub no_qemu: Option<String>,
    /// Why no test can have a mount namespace here, if so.
    pub no_mounts: Option<String>,
    /// Why no test can have a network namespace with CNI plugins, if so.
    pub no_network: Option<String>,
    /// Why no test can make a cgroup here, if so.
    pub no_cgroups: Option<String>,
    /// The engine that carries the breadth of the tests, `kvm` or `qemu`.
    pub engine: &'static str,
}

/// The facts of this machine.
pub fn machine() -> &'static Machine {
    static MACHINE: LazyLock<Machine> = LazyLock::new(probe);
    &MACHINE
}

fn probe() -> Machine {
    let output = Command::new(program("spherule-vmm")).arg("probe").output();
    let probe: serde_json::Value = output
        .ok()
        .and_then(|out| serde_json::from_slice(&out.stdout).ok())
        .unwrap_or_default();
    let missing = |engine: &str| {
        let found = &probe[engine];
        let why = found["detail"]
            .as_str()
            .unwrap_or("spherule-vmm probe failed");
        (found["usable"] != true).then(|| why.to_owned())
    };
    let kvm_is_fast = probe["kvm"]["native"] == true;
    Machine {
        no_kvm: missing("kvm"),
        kvm_is_fast,
        no_qemu: missing("qemu"),
        no_mounts: no_mounts(),
        no_network: no_network(),
        no_cgroups: no_cgroups(),
        engine: wanted_engine().unwrap_or(if kvm_is_fast { "kvm" } else { "qemu" }),
    }
}

/// The engine that `cargo xtask test --engine` names.
fn wanted_engine() -> Option<&'static str> {
    let wanted = std::env::var_os("SPHERULE_ENGINE")?;
    ["kvm", "qemu"].into_iter().find(|name| wanted == *name)
}

fn no_mounts() -> Option<String> {
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    let could = tried.is_ok_and(|output| output.status.success());
    (!could).then(|| "unshare --mount is not allowed here".to_owned())
}

fn no_network() -> Option<String> {
    let tried = Command::new("unshare")
        .args(["--net", "--mount", "ip", "link", "set", "lo", "up"])
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return Some("unshare --net ip link is not allowed here".to_owned());
    }
    let missing = |path: &&&str| !Path::new(path).exists();
    ["/usr/lib/cni/bridge", "/dev/net/tun"]
        .iter()
        .find(missing)
        .map(|path| format!("there is no {path}"))
}

fn no_cgroups() -> Option<String> {
    let mount = Path::new("/sys/fs/cgroup");
    let memory = Some(mount.join("memory")).filter(|dir| dir.exists());
    let root = memory.unwrap_or_else(|| mount.to_owned());
    let probe = root.join(format!("spherule-probe-{}", std::process::id()));
    let made = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
    made.err()
        .map(|error| format!("no cgroup can be made in {}: {error}", root.display()))
}

/// Why a test that needs this program cannot run, if it is not installed.
pub fn lacking(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    (!found).then(|| format!("{program} is not installed"))
}

/// Why a test that takes minutes or gigabytes is not run, unless this run is a long
/// one.
pub fn short() -> Option<String> {
    let long = std::env::var_os("SPHERULE_LONG").is_some_and(|value| value == "1");
    (!long).then(|| "takes long; cargo xtask test --long".to_owned())
}
