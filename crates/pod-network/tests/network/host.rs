//! A namespace that plays the host.

use nix::sched::{CloneFlags, setns, unshare};
use pod_network::{
    AttachRequest, Attachment, Capabilities, Network, NetworkConfig, NetworkRecord, PodIdentity,
    default_list,
};
use rustix::mount::{MountFlags, MountPropagationFlags};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A host of the test's own: nothing of it is seen outside, and all of it goes
/// with the thread.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: NetworkConfig,
}

/// Runs a test on a new host.
pub(crate) fn on_host(test: impl FnOnce(&Host) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let host = Host::new();
            test(&host);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Host {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces, and so need root"
        );
        let dir = tempfile::tempdir().expect("a scratch directory");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces");
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .expect("private mounts");
        // iptables keeps its lock in /run.
        rustix::mount::mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None)
            .expect("a /run of its own");
        command("ip", &["link", "set", "lo", "up"]);
        let mut config = NetworkConfig::new(dir.path().join("run"));
        // Plugins are known by it, and others' tests use the same ids.
        config.netns_dir = dir.path().join("run/netns");
        config.conf_dir = dir.path().join("net.d");
        config.plugin_dirs = vec![dir.path().join("bin"), "/usr/lib/cni".into()];
        config.plugin_timeout = Duration::from_secs(60);
        fs::create_dir_all(dir.path().join("bin")).expect("a directory");
        fs::create_dir_all(&config.conf_dir).expect("a directory");
        Self { dir, config }
    }

    pub(crate) fn network(&self) -> Network {
        Network::new(self.config.clone()).expect("the network")
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.dir.path().join("leases")
    }

    pub(crate) fn default_options(&self) -> default_list::Options {
        default_list::Options {
            data_dir: Some(self.leases()),
            ..default_list::Options::default()
        }
    }

    /// The default network, as `network init` writes it.
    pub(crate) fn with_default_list(&self) -> Network {
        self.write_default_list(&self.default_options());
        self.network()
    }

    pub(crate) fn write_default_list(&self, options: &default_list::Options) {
        default_list::write(&self.config.conf_dir, &self.config.plugin_dirs, options)
            .expect("the default network is written");
    }

    pub(crate) fn write_list(&self, name: &str, content: &str) {
        fs::write(self.config.conf_dir.join(name), content).expect("a configuration");
    }

    /// A plugin of shell.
    pub(crate) fn write_plugin(&self, name: &str, script: &str) {
        let path = self.dir.path().join("bin").join(name);
        let new = path.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).expect("a plugin");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("its mode");
        fs::rename(new, path).expect("its name");
    }

    /// All that pods may leave behind.
    pub(crate) fn remains(&self) -> Vec<String> {
        let mut all = Vec::new();
        for line in command("ip", &["-o", "link"]).lines() {
            all.push(format!("link {}", line.split(':').nth(1).unwrap_or(line)));
        }
        for tool in ["iptables-save", "ip6tables-save"] {
            for line in command(tool, &[]).lines() {
                if line.starts_with("-A") || line.starts_with(':') {
                    let chain = line.split(" [").next().unwrap_or(line);
                    all.push(format!("{tool} {chain}"));
                }
            }
        }
        for directory in ["run/netns", "run/network", "leases/spherule"] {
            let entries = fs::read_dir(self.dir.path().join(directory));
            for entry in entries.into_iter().flatten() {
                let name = entry.expect("an entry").file_name();
                let name = name.to_string_lossy();
                // host-local's own bookkeeping.
                if name != "lock" && !name.starts_with("last_reserved_ip") {
                    all.push(format!("{directory}/{name}"));
                }
            }
        }
        let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("mounts");
        all.extend(
            mounts
                .lines()
                .filter(|line| line.starts_with("nsfs"))
                .map(str::to_owned),
        );
        all.sort();
        all
    }
}

pub(crate) fn pod(id: &str) -> PodIdentity {
    PodIdentity {
        sandbox_id: id.into(),
        name: format!("name-{id}"),
        namespace: "default".into(),
        uid: format!("uid-{id}"),
    }
}

pub(crate) fn request(id: &str) -> AttachRequest {
    AttachRequest {
        pod: pod(id),
        capabilities: Capabilities::default(),
        queues: 1,
        anti_spoofing: None,
    }
}

/// Plans and attaches.
pub(crate) fn attach(network: &Network, request: AttachRequest) -> (NetworkRecord, Attachment) {
    let mut record = network.plan(request).expect("a plan");
    match network.attach(&mut record) {
        Ok(attachment) => (record, attachment),
        Err(e) => panic!("attach: {}", pod_network::chain_text(&e)),
    }
}

/// Runs a program that has to succeed; its output.
pub(crate) fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}
/// Listens as soon as the address may be used: IPv6 looks for a duplicate first.
pub(crate) fn listen(address: SocketAddr) -> TcpListener {
    for _ in 0..200 {
        match TcpListener::bind(address) {
            Err(e) if e.kind() == ErrorKind::AddrNotAvailable => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other.expect("a listener"),
        }
    }
    panic!("{address} is not to be had");
}

/// Another machine on a wire to the host.
pub(crate) struct Node {
    netns: File,
}

impl Node {
    /// A wire between these two addresses, the host's first.
    pub(crate) fn beside(host: &str, node: &str) -> Self {
        let netns = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&netns));
        command(
            "ip",
            &[
                "link", "add", "wire0", "type", "veth", "peer", "name", "wire1",
            ],
        );
        command("ip", &["address", "add", host, "dev", "wire0"]);
        command("ip", &["link", "set", "wire0", "up"]);
        // `ip` wants a namespace by path; our descriptor is one while we wait.
        let path = path.replace("/proc/self", &format!("/proc/{}", std::process::id()));
        command("ip", &["link", "set", "wire1", "netns", &path]);
        let made = Self { netns };
        made.within(|| {
            command("ip", &["address", "add", node, "dev", "wire1"]);
            command("ip", &["link", "set", "wire1", "up"]);
        });
        made
    }

    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("the namespace");
            work()
        })
    }
}

pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
