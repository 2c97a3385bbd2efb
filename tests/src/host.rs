//! Namespaces that play a host: a network of its own and a /run of its own, in
//! which the daemon, the CNI's plugins and the pods' networks live. Nothing of it
//! is seen outside, and all of it goes with the last process in it.

use anyhow::{Context, ensure};
use rustix::thread::LinkNameSpaceType;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host of a test's own, with a directory for the CNI's parts.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    /// Holds the namespaces; ends with its input, also where the test is killed.
    holder: Child,
    _input: ChildStdin,
    /// What was started on it; ends with it.
    programs: Mutex<Vec<Child>>,
}

impl Host {
    /// A host without any network configuration.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("spherule-host-")
            .tempdir()?;
        for part in ["net.d", "plugins"] {
            std::fs::create_dir(dir.path().join(part))?;
        }
        // iptables keeps its lock in /run.
        let script = "mount -t tmpfs tmpfs /run; mkdir /run/netns; ip link set lo up; \
                      echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo ready; exec cat";
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-ec", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = holder.stdin.take().context("a pipe")?;
        let mut line = String::new();
        let output = holder.stdout.take().context("a pipe")?;
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "ready\n", "no namespaces: {line:?}");
        Ok(Self {
            dir,
            holder,
            _input: input,
            programs: Mutex::default(),
        })
    }

    /// A host with the default network (`spherule network init`).
    pub fn with_network() -> anyhow::Result<Self> {
        let host = Self::new()?;
        host.init(&[])?;
        Ok(host)
    }

    /// `spherule network init` with more arguments; what it said.
    pub fn init(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(&crate::program("spherule"));
        command.args(["network", "init"]).args(self.cni_args());
        command
            .arg("--data-dir")
            .arg(self.dir.path().join("leases"));
        output(command.args(args))
    }

    /// Where the daemon finds the CNI's parts.
    pub(crate) fn cni_args(&self) -> Vec<PathBuf> {
        let dir = self.dir.path();
        vec![
            "--cni-conf-dir".into(),
            dir.join("net.d"),
            "--cni-plugin-dir".into(),
            dir.join("plugins"),
            "--cni-plugin-dir".into(),
            "/usr/lib/cni".into(),
        ]
    }

    /// Room for the host's files; `net.d` holds its network configurations,
    /// `plugins` plugins of its own, `leases` the addresses given.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a network configuration.
    pub fn write_list(&self, name: &str, list: &serde_json::Value) -> anyhow::Result<()> {
        let path = self.dir.path().join("net.d").join(name);
        Ok(std::fs::write(path, list.to_string())?)
    }

    /// Writes a CNI plugin of shell, in one step; it comes before the real ones.
    pub fn write_plugin(&self, name: &str, script: &str) -> anyhow::Result<()> {
        let path = self.dir.path().join("plugins").join(name);
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        write!(file, "#!/bin/sh\n{script}\n")?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        drop(file);
        Ok(std::fs::rename(new, path)?)
    }

    /// A program on this host, not started yet.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.holder.id()))
            .args(["--net", "--mount", "--"])
            .arg(program);
        command
    }

    /// Runs a shell script on this host, which has to succeed; its output.
    pub fn sh(&self, script: &str) -> anyhow::Result<String> {
        output(self.command(Path::new("sh")).args(["-ec", script]))
    }

    /// Puts another node on a wire to this host, 192.0.2.1 and 2001:db8::1: a
    /// namespace `node` with 192.0.2.2 and 2001:db8::2.
    pub fn add_node(&self) -> anyhow::Result<()> {
        self.sh(
            "ip netns add node; ip link add wire0 type veth peer name wire1 netns node
             ip addr add 192.0.2.1/24 dev wire0; ip addr add 2001:db8::1/64 dev wire0
             ip link set wire0 up
             ip -n node addr add 192.0.2.2/24 dev wire1
             ip -n node addr add 2001:db8::2/64 dev wire1 nodad
             ip -n node link set wire1 up; ip -n node link set lo up
             ip -n node route add default via 192.0.2.1
             ip -n node -6 route add default via 2001:db8::1",
        )?;
        Ok(())
    }

    /// Runs `peer` on this host or in a namespace of `ip netns` on it; its output.
    pub fn peer(&self, netns: Option<&str>, arguments: &str) -> anyhow::Result<String> {
        self.sh(&peer_line(netns, arguments)?)
    }

    /// Starts `peer serve` there, on both families.
    pub fn serve(&self, netns: Option<&str>, port: u16) -> anyhow::Result<()> {
        self.start(&peer_line(netns, &format!("serve [::]:{port}"))?)
    }

    /// A page as this host gets it by HTTP, or a namespace of `ip netns` on it.
    pub fn get(&self, netns: Option<&str>, page: &str) -> anyhow::Result<Vec<u8>> {
        let root = format!("/proc/{}", self.holder.id());
        let path = match netns {
            None => format!("{root}/ns/net"),
            Some(name) => format!("{root}/root/run/netns/{name}"),
        };
        let netns = File::open(&path).context(path)?;
        let get = || {
            rustix::thread::move_into_link_name_space(
                netns.as_fd(),
                Some(LinkNameSpaceType::Network),
            )?;
            http_get(page)
        };
        // On a thread that ends with it: the others stay where they are.
        std::thread::scope(|scope| match scope.spawn(get).join() {
            Ok(page) => page,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Starts a program on this host, which runs as long as the host is there. The
    /// words are one line's, without quotes.
    pub fn start(&self, line: &str) -> anyhow::Result<()> {
        let mut words = line.split_whitespace();
        let program = words.next().context("a program")?;
        let mut command = self.command(Path::new(program));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.args(words).spawn()?;
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.push(child);
        Ok(())
    }

    /// All that pods may leave behind: links, rules, namespaces, addresses.
    pub fn remains(&self, run: &Path) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for line in self.sh("ip -o link")?.lines() {
            let name = line.split(": ").nth(1).unwrap_or(line);
            all.push(format!("link {name}"));
        }
        for tool in ["iptables-save", "ip6tables-save"] {
            let rules = self.sh(tool)?;
            let kept = rules
                .lines()
                .filter(|l| l.starts_with("-A") && !is_of_portmap(l));
            all.extend(kept.map(|line| format!("{tool} {line}")));
        }
        let leases = self.dir.path().join("leases/spherule");
        all.push(self.sh("ls /run/netns")?);
        for dir in [leases, run.join("network")] {
            for entry in std::fs::read_dir(&dir).into_iter().flatten() {
                let name = entry?.file_name().to_string_lossy().into_owned();
                // host-local's own bookkeeping.
                if name != "lock" && !name.starts_with("last_reserved_ip") {
                    all.push(dir.join(name).display().to_string());
                }
            }
        }
        let mounts = self.sh("cat /proc/mounts")?;
        let namespaces = mounts.lines().filter(|line| line.starts_with("nsfs"));
        all.extend(namespaces.map(str::to_owned));
        all.sort();
        Ok(all)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        for child in programs.iter_mut().chain([&mut self.holder]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn peer_line(netns: Option<&str>, arguments: &str) -> anyhow::Result<String> {
    let program = crate::peer()?.display();
    Ok(match netns {
        None => format!("{program} {arguments}"),
        Some(name) => format!("ip netns exec {name} {program} {arguments}"),
    })
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{shown}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The chains that portmap makes once, for whatever pod: none of a pod's own rules.
fn is_of_portmap(rule: &str) -> bool {
    rule.ends_with("-j CNI-HOSTPORT-DNAT")
        || rule.starts_with("-A CNI-HOSTPORT-SETMARK ")
        || rule.contains("CNI-HOSTPORT-MASQ ")
        || rule.ends_with("-j CNI-HOSTPORT-MASQ")
}

/// Gets a page `ADDRESS:PORT/PATH`; waits for a server that is just starting.
fn http_get(page: &str) -> anyhow::Result<Vec<u8>> {
    let (address, path) = page.split_once('/').context("a path")?;
    let address: SocketAddr = address.parse()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match try_get(&address, path) {
            Ok(body) => return Ok(body),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(error.context(format!("getting {page}")));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn try_get(address: &SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.context("no answer")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    ensure!(head.contains(" 200 "), "{head}");
    Ok(answer.split_off(end + 4))
}
