//! What a manager of sandboxes is given.

use crate::error::SandboxError;
use crate::scratch;
use crate::spec::Engine;
use pod_network::NetworkConfig;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vm_launcher::Launcher;

/// Longest path of a unix socket, in bytes (sun_path less its final zero).
const MAX_SOCKET_PATH: usize = 107;
/// Longest id of a sandbox.
pub(crate) const MAX_ID: usize = 64;

/// Settings of [`crate::Sandboxes`].
#[derive(Debug, Clone)]
pub struct Config {
    /// State directory: `<root>/pods/<id>` and `<root>/scratch-templates` are ours.
    pub root: PathBuf,
    /// Directory for sockets: `<run>/pods/<id>` is ours.
    pub run: PathBuf,
    /// The guest kernel (vmlinux).
    pub kernel: PathBuf,
    /// The guest's initramfs with spherule-init.
    pub initramfs: PathBuf,
    /// Starts VMMs.
    pub launcher: Launcher,
    /// Engine of sandboxes that ask for none.
    pub engine: Engine,
    /// Added to the guest kernel's command line.
    pub extra_cmdline: String,
    /// Size in MiB of the scratch disk of sandboxes that ask for none.
    pub scratch_mib: u64,
    /// Largest size of a kernel log in bytes; 0: the VMM's default.
    pub kernel_log_limit: u64,
    /// Most sandboxes that are made at a time; others wait their turn. 0 is 1.
    pub max_parallel_boots: usize,
    /// Where the CNI's configuration and plugins are; namespaces are kept in
    /// `<run>/netns`.
    pub network: NetworkConfig,
    /// How often a guest's clock is compared with the host's.
    pub clock_check: Duration,
    /// Limits of waiting.
    pub timeouts: Timeouts,
}

/// How long is waited. Generous: a KVM without hardware virtualization boots a
/// guest in up to a minute.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the boot of the VM to the agent's greeting.
    pub agent_ready: Duration,
    /// One call to the agent.
    pub call: Duration,
    /// A call that changes, ends or removes what is there: below the patience of a
    /// kubelet, whom a hung guest must not hold up.
    pub control: Duration,
    /// A call for figures: a silent guest delays only its own answer.
    pub stats: Duration,
    /// An orderly end of the guest, before its VMM is told to end it.
    pub shutdown: Duration,
    /// The VMM's own end, before it is killed.
    pub vmm_exit: Duration,
    /// The rest of a container's output, after its end.
    pub drain: Duration,
    /// A call's wait for a sandbox whose VM the daemon's start has not heard from.
    pub recovery: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            agent_ready: Duration::from_secs(120),
            call: Duration::from_secs(180),
            control: Duration::from_secs(60),
            stats: Duration::from_secs(5),
            shutdown: Duration::from_secs(10),
            vmm_exit: Duration::from_secs(5),
            drain: Duration::from_secs(30),
            recovery: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Settings with the defaults: a 10 GiB sparse scratch disk, no addition to
    /// the command line, twice as many boots at a time as there are CPUs.
    pub fn new(
        root: impl Into<PathBuf>,
        run: impl Into<PathBuf>,
        kernel: impl Into<PathBuf>,
        initramfs: impl Into<PathBuf>,
        launcher: Launcher,
        engine: Engine,
    ) -> Self {
        let run = run.into();
        Self {
            root: root.into(),
            network: NetworkConfig::new(&run),
            run,
            kernel: kernel.into(),
            initramfs: initramfs.into(),
            launcher,
            engine,
            extra_cmdline: String::new(),
            scratch_mib: scratch::DEFAULT_SCRATCH_MIB,
            kernel_log_limit: 0,
            max_parallel_boots: parallel_boots(),
            clock_check: Duration::from_secs(60),
            timeouts: Timeouts::default(),
        }
    }

    /// Where a sandbox's files lie.
    pub(crate) fn paths(&self, id: &str) -> Paths {
        Paths {
            state: self.root.join("pods").join(id),
            run: self.run.join("pods").join(id),
        }
    }

    /// Makes the directories and takes their true paths, by which processes are
    /// known that work in them. The sockets of every sandbox must have addresses
    /// that the system takes.
    pub(crate) fn prepare(mut self) -> Result<Self, SandboxError> {
        scratch::check_size(self.scratch_mib)?;
        for dir in [&mut self.root, &mut self.run] {
            let true_path =
                std::fs::create_dir_all(dir.join("pods")).and_then(|()| dir.canonicalize());
            *dir = true_path.map_err(|e| SandboxError::file("cannot make", dir.as_path(), e))?;
        }
        check_run_dir(&self.run)?;
        self.network.run_dir.clone_from(&self.run);
        Ok(self)
    }
}

/// Twice as many as there are CPUs: a boot also waits, but more at once would
/// only make the first ones late.
fn parallel_boots() -> usize {
    2 * std::thread::available_parallelism().map_or(2, NonZero::get)
}

fn check_run_dir(run: &Path) -> Result<(), SandboxError> {
    let longest = [vm_spec::files::CONTROL_SOCKET, vm_spec::files::VSOCK_SOCKET]
        .map(str::len)
        .into_iter()
        .max()
        .unwrap_or_default();
    // Ids that this daemon makes have 32 digits; longer ones are checked one by one.
    let bytes = run.as_os_str().len() + "/pods/".len() + 32 + 1 + longest;
    if bytes > MAX_SOCKET_PATH {
        let path = run.to_owned();
        return Err(SandboxError::RunDirTooLong { path, bytes });
    }
    Ok(())
}

/// The two directories of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// Survives a restart of the host.
    pub(crate) state: PathBuf,
    /// Sockets; the VMM's `--dir`.
    pub(crate) run: PathBuf,
}

impl Paths {
    pub(crate) fn scratch(&self) -> PathBuf {
        self.state.join("scratch.img")
    }
    pub(crate) fn kernel_log(&self) -> PathBuf {
        self.state.join("kernel.log")
    }
    pub(crate) fn vmm_log(&self) -> PathBuf {
        self.state.join("vmm.log")
    }
    pub(crate) fn vsock(&self) -> PathBuf {
        self.run.join(vm_spec::files::VSOCK_SOCKET)
    }
    pub(crate) fn exit(&self) -> PathBuf {
        self.run.join(vm_spec::files::EXIT)
    }
    /// The longest socket path of this sandbox fits its address.
    pub(crate) fn sockets_fit(&self) -> bool {
        self.vsock().as_os_str().len() <= MAX_SOCKET_PATH
            && self
                .run
                .join(vm_spec::files::CONTROL_SOCKET)
                .as_os_str()
                .len()
                <= MAX_SOCKET_PATH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_directory_that_leaves_no_room_for_sockets_is_refused() {
        assert!(check_run_dir(Path::new("/run/spherule")).is_ok());
        let long = format!("/run/{}", "x".repeat(60));
        let error = check_run_dir(Path::new(&long)).unwrap_err();
        assert!(error.to_string().contains("shorter --run"), "{error}");
    }
}
