//! Namespaces that play a host: a network of its own and a /run of its own, in
//! which the daemon, the CNI's plugins and the pods' networks live. Nothing of it
//! is seen outside, and all of it goes with the last process in it.

use anyhow::{Context, ensure};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use tempfile::TempDir;

/// A host of a test's own, with a directory for the CNI's parts.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    /// Holds the namespaces; ends with its input, also where the test is killed.
    holder: Child,
    _input: ChildStdin,
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
                      sysctl -qw net.ipv6.conf.default.accept_dad=0; echo ready; exec cat";
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
        let mut file = std::fs::File::create(&new)?;
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

    /// All that pods may leave behind: links, rules, namespaces, addresses.
    pub fn remains(&self, run: &Path) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for line in self.sh("ip -o link")?.lines() {
            let name = line.split(": ").nth(1).unwrap_or(line);
            all.push(format!("link {name}"));
        }
        for tool in ["iptables-save", "ip6tables-save"] {
            let rules = self.sh(tool)?;
            let kept = rules.lines().filter(|l| l.starts_with("-A"));
            all.extend(kept.map(|line| format!("{tool} {line}")));
        }
        let leases = self.dir.path().join("leases/spherule");
        for dir in [leases, run.join("netns"), run.join("network")] {
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
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
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
