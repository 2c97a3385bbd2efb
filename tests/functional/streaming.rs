//! Exec and PortForward through the streaming server, from the CRI call to the
//! process in the guest.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::Value;
use spherule_tests::Daemon;
use spherule_tests::cri::{Cri, container_config, refused, sandbox_config};
use spherule_tests::websocket::connect;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    ("exec_passes_streams_both_ways_and_the_exit_code", exec),
    (
        "command_has_the_seccomp_and_the_cgroup_of_its_container",
        confined,
    ),
    ("client_that_vanishes_takes_its_command_along", vanish),
    ("port_is_forwarded", forward),
    (
        "forwarded_port_that_is_not_read_stalls_no_other",
        stalled_port,
    ),
    ("many_commands_run_side_by_side", side_by_side),
    ("output_of_exec_sync_is_bounded_and_says_so", bounded),
    ("commands_end_with_their_container", container_ends),
    (
        "ephemeral_container_joins_the_processes_of_its_target",
        ephemeral,
    ),
];

pub(crate) const V5: &str = "v5.channel.k8s.io";
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What makes a request wrong.
type Change = fn(&mut v1::ExecRequest);

/// A container that runs, in a sandbox of its own.
pub(crate) struct Running {
    pub(crate) cri: Cri,
    pub(crate) sandbox: String,
    pub(crate) container: String,
    logs: tempfile::TempDir,
}

impl Running {
    pub(crate) fn new(name: &str, script: &str) -> anyhow::Result<Self> {
        Self::with(name, container_config("c", script))
    }

    pub(crate) fn with(name: &str, container: v1::ContainerConfig) -> anyhow::Result<Self> {
        Self::on(&*shared::daemon()?, name, container)
    }

    pub(crate) fn on(
        daemon: &Daemon,
        name: &str,
        container: v1::ContainerConfig,
    ) -> anyhow::Result<Self> {
        let cri = Cri::connect(daemon)?;
        let logs = tempfile::tempdir()?;
        let config = sandbox_config(name, logs.path());
        let sandbox = cri.run(&config)?;
        let container = cri.create(&sandbox, container, &config)?;
        let running = Self {
            cri,
            sandbox,
            container,
            logs,
        };
        running.cri.start(&running.container)?;
        Ok(running)
    }

    pub(crate) fn request(&self, script: &str) -> v1::ExecRequest {
        v1::ExecRequest {
            container_id: self.container.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        }
    }

    pub(crate) fn exec(&self, request: v1::ExecRequest) -> Result<String, tonic::Status> {
        let mut call = self.cri.runtime.clone();
        Ok(self.cri.wait(call.exec(request))?.url)
    }

    /// A URL to attach to it: to its output, and to its input if it has one.
    pub(crate) fn attach(&self, stdin: bool) -> Result<String, tonic::Status> {
        let request = v1::AttachRequest {
            container_id: self.container.clone(),
            stdin,
            stdout: true,
            ..v1::AttachRequest::default()
        };
        let mut call = self.cri.runtime.clone();
        Ok(self.cri.wait(call.attach(request))?.url)
    }

    /// A URL to a port of it.
    pub(crate) fn forward(&self, port: i32) -> Result<String, tonic::Status> {
        self.forward_all(vec![port])
    }

    /// A URL to several.
    fn forward_all(&self, port: Vec<i32>) -> Result<String, tonic::Status> {
        let pod_sandbox_id = self.sandbox.clone();
        let request = v1::PortForwardRequest {
            pod_sandbox_id,
            port,
        };
        let mut call = self.cri.runtime.clone();
        Ok(self.cri.wait(call.port_forward(request))?.url)
    }

    /// Waits until it listens on all these ports.
    pub(crate) fn listens(&self, ports: &[u16]) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut listening = String::new();
        while !ports
            .iter()
            .all(|port| listening.contains(&format!(":{port} ")))
        {
            ensure!(start.elapsed() < PATIENCE, "nothing listens: {listening}");
            listening = self.output("sleep 0.1; netstat -ltn")?;
        }
        Ok(())
    }

    /// The log of its container `c`.
    pub(crate) fn log(&self) -> PathBuf {
        self.logs.path().join("c.log")
    }

    /// What a command prints.
    pub(crate) fn output(&self, script: &str) -> anyhow::Result<String> {
        let request = v1::ExecSyncRequest {
            container_id: self.container.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 60,
        };
        let answer = self.cri.wait(self.cri.runtime.clone().exec_sync(request))?;
        Ok(String::from_utf8(answer.stdout)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.cri.remove_pod(&self.sandbox);
    }
}

fn exec() -> anyhow::Result<()> {
    let pod = Running::new("streaming-exec", "exec sleep 600")?;
    let url = pod.exec(pod.request("cat; echo done >&2; exit 5"))?;
    let mut client = connect(&url, V5)?.map_err(anyhow::Error::msg)?;
    let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
    client.say(0, &sent)?;
    client.end(0)?;
    let heard = client.hear(|_| false)?;
    ensure!(heard[&1] == sent, "{} bytes came back", heard[&1].len());
    ensure!(heard[&2] == b"done\n", "{heard:?}");
    let status: Value = serde_json::from_slice(&heard[&3])?;
    ensure!(status["details"]["causes"][0]["message"] == "5", "{status}");

    // A URL is good once.
    let answer = connect(&url, V5)?.err().context("served twice")?;
    ensure!(answer.contains(" 404 "), "{answer}");

    let wrong: [(&str, Change); 3] = [
        ("cmd", |request| request.cmd.clear()),
        ("stderr", |request| request.tty = true),
        ("stdin", |request| {
            (request.stdin, request.stdout, request.stderr) = (false, false, false);
        }),
    ];
    for (field, change) in wrong {
        let mut request = pod.request("true");
        change(&mut request);
        refused(pod.exec(request), Code::InvalidArgument, &[field])?;
    }
    pod.cri.stop(&pod.container, 0)?;
    let request = pod.request("true");
    refused(pod.exec(request), Code::FailedPrecondition, &["Running"])
}

fn confined() -> anyhow::Result<()> {
    use v1::security_profile::ProfileType;
    let script = "cat /proc/self/cgroup; echo up; exec sleep 600";
    for (profile, seccomp) in [
        (ProfileType::RuntimeDefault, "2"),
        (ProfileType::Unconfined, "0"),
    ] {
        let mut config = container_config("c", script);
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.seccomp = Some(v1::SecurityProfile {
            profile_type: profile.into(),
            ..v1::SecurityProfile::default()
        });
        let pod = Running::with("streaming-confined", config)?;
        // Its cgroup is the root of what the container sees; a command's is below.
        let start = Instant::now();
        let mut log = String::new();
        while !log.contains(" F up\n") {
            ensure!(start.elapsed() < PATIENCE, "{log}");
            std::thread::sleep(Duration::from_millis(50));
            log = std::fs::read_to_string(pod.log())?;
        }
        ensure!(log.contains(" F 0::/\n"), "{log}");
        let script = "cat /proc/self/cgroup; grep Seccomp: /proc/self/status";
        let mut client =
            connect(&pod.exec(pod.request(script))?, V5)?.map_err(anyhow::Error::msg)?;
        let heard = client.hear(|_| false)?;
        for said in [
            String::from_utf8_lossy(&heard[&1]).into_owned(),
            pod.output(script)?,
        ] {
            let (cgroup, rest) = said.split_once('\n').context(said.clone())?;
            ensure!(cgroup.starts_with("0::/exec-"), "{said}");
            ensure!(rest == format!("Seccomp:\t{seccomp}\n"), "{said}");
        }
    }
    Ok(())
}

fn vanish() -> anyhow::Result<()> {
    let pod = Running::new("streaming-vanish", "exec sleep 600")?;
    let url = pod.exec(pod.request("echo up; exec sleep 12345"))?;
    let mut client = connect(&url, V5)?.map_err(anyhow::Error::msg)?;
    client.hear(|heard| heard.get(&1).is_some_and(|said| said == b"up\n"))?;
    drop(client);
    let start = Instant::now();
    while pod.output("ps -o args")?.contains("sleep 12345") {
        ensure!(start.elapsed() < PATIENCE, "the command lives on");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn forward() -> anyhow::Result<()> {
    let server = "exec nc -ll -p 8080 -e cat";
    let pod = Running::new("streaming-forward", server)?;
    pod.listens(&[8080])?;
    let protocol = "v4.channel.k8s.io";
    let mut client = connect(&pod.forward(8080)?, protocol)?.map_err(anyhow::Error::msg)?;
    client.say(0, b"ping")?;
    // The port's number comes first.
    let heard = client.hear(|heard| heard.get(&0).is_some_and(|said| said.len() >= 6))?;
    ensure!(heard[&0] == b"\x90\x1fping", "{heard:?}");
    drop(client);

    let mut client = connect(&pod.forward(8081)?, protocol)?.map_err(anyhow::Error::msg)?;
    let heard = client.hear(|_| false)?;
    let told = String::from_utf8_lossy(&heard[&1][2..]).into_owned();
    ensure!(told.contains("8081"), "{told}");
    refused(pod.forward(0), Code::InvalidArgument, &["port"])
}

fn stalled_port() -> anyhow::Result<()> {
    const COUNT: usize = 30;
    // One server reads once it is told to.
    let script = "nc -ll -p 9 -e sh -c \
        'until test -e /tmp/read; do sleep 0.1; done; head -c 30000000 | md5sum' & \
        exec nc -ll -p 7 -e cat";
    let pod = Running::new("streaming-stalled-port", script)?;
    pod.listens(&[7, 9])?;
    let url = pod.forward_all(vec![9, 7])?;
    let mut client = connect(&url, "v4.channel.k8s.io")?.map_err(anyhow::Error::msg)?;
    // More than all queues on the way to the pod have room for.
    let piece: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for _ in 0..COUNT {
        client.say(0, &piece)?;
    }
    client.say(2, b"ping")?;
    let heard = client.hear(|heard| heard.get(&2).is_some_and(|said| said.len() >= 6))?;
    ensure!(heard[&2] == b"\x07\0ping", "{heard:?}");
    ensure!(heard[&0] == b"\x09\0", "{heard:?}");
    pod.output("touch /tmp/read")?;
    let heard = client.hear(|heard| heard.get(&0).is_some_and(|said| said.len() >= 32))?;
    ensure!(heard[&0].starts_with(&md5(&piece, COUNT)?), "{heard:?}");
    Ok(())
}

/// What `md5sum` says first of so many times these bytes.
pub(crate) fn md5(bytes: &[u8], times: usize) -> anyhow::Result<Vec<u8>> {
    let mut md5sum = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = md5sum.stdin.take().context("stdin")?;
    for _ in 0..times {
        stdin.write_all(bytes)?;
    }
    drop(stdin);
    let mut said = md5sum.wait_with_output()?.stdout;
    said.truncate(32);
    Ok(said)
}

/// Commands at once.
const MANY: usize = 64;

fn side_by_side() -> anyhow::Result<()> {
    let pod = Running::new("streaming-many", "exec sleep 600")?;
    let mut clients = Vec::new();
    for number in 0..MANY {
        let request = pod.request(&format!("cat; exit {number}"));
        let client = connect(&pod.exec(request)?, V5)?.map_err(anyhow::Error::msg)?;
        clients.push(client);
    }
    // All of them run by now; none has had its input yet.
    for (number, client) in clients.iter_mut().enumerate() {
        client.say(0, format!("I am {number}").as_bytes())?;
        client.end(0)?;
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let heard = client.hear(|_| false)?;
        let said = String::from_utf8_lossy(&heard[&1]);
        let status: Value = serde_json::from_slice(&heard[&3])?;
        ensure!(said == format!("I am {number}"), "{said:?}, {status}");
        let code = &status["details"]["causes"][0]["message"];
        ensure!(
            if number == 0 {
                status["status"] == "Success"
            } else {
                code.as_str().and_then(|code| code.parse().ok()) == Some(number)
            },
            "{number}: {status}"
        );
    }
    Ok(())
}

fn bounded() -> anyhow::Result<()> {
    let pod = Running::new("streaming-bounded", "exec sleep 600")?;
    let request = v1::ExecSyncRequest {
        container_id: pod.container.clone(),
        cmd: ["head", "-c", "20000000", "/dev/zero"]
            .map(str::to_owned)
            .to_vec(),
        timeout: 120,
    };
    let mut call = pod.cri.runtime.clone().max_decoding_message_size(32 << 20);
    let answer = pod.cri.wait(call.exec_sync(request))?;
    ensure!(answer.exit_code == 0);
    let size = answer.stdout.len();
    ensure!((16_000_000..=16 << 20).contains(&size), "{size}");
    let told = String::from_utf8(answer.stderr)?;
    ensure!(
        told.contains("16 MiB") && told.contains("dropped"),
        "{told}"
    );
    Ok(())
}

fn container_ends() -> anyhow::Result<()> {
    let script = "while ! test -e /end; do usleep 50000; done";
    let pod = Running::new("streaming-ends", script)?;
    let url = pod.exec(pod.request("echo up; exec sleep 12345"))?;
    let late = pod.exec(pod.request("true"))?;
    let mut client = connect(&url, V5)?.map_err(anyhow::Error::msg)?;
    client.hear(|heard| heard.get(&1).is_some_and(|said| said == b"up\n"))?;
    pod.output("touch /end")?;
    // Killed with it, which is an exit code as any other.
    let heard = client.hear(|_| false)?;
    let status: Value = serde_json::from_slice(&heard[&3])?;
    ensure!(
        status["details"]["causes"][0]["message"] == "137",
        "{status}"
    );
    // The request was good when it came; its client hears why it is not any more.
    let heard = connect(&late, V5)?
        .map_err(anyhow::Error::msg)?
        .hear(|_| false)?;
    let status: Value = serde_json::from_slice(&heard[&3])?;
    ensure!(status["status"] == "Failure", "{status}");
    let told = status["message"].to_string().to_lowercase();
    // By the daemon or, if it knows of the end later, by the agent.
    ensure!(told.contains("running"), "{status}");
    Ok(())
}

/// A container with these processes to see.
fn seeing(name: &str, script: &str, mode: v1::NamespaceMode, target: &str) -> v1::ContainerConfig {
    let mut config = container_config(name, script);
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options = Some(v1::NamespaceOption {
        pid: mode.into(),
        target_id: target.to_owned(),
        ..v1::NamespaceOption::default()
    });
    config
}

fn ephemeral() -> anyhow::Result<()> {
    use v1::NamespaceMode::{Container, Target};
    let target = seeing("c", "exec sleep 86421", Container, "");
    let pod = Running::with("streaming-debug", target)?;
    let script = "ps -o pid,args; cat; exit 4";
    let mut config = seeing("debugger", script, Target, &pod.container);
    config.stdin = true;
    config.stdin_once = true;
    let logs = tempfile::tempdir()?;
    let sandbox = sandbox_config("streaming-debug", logs.path());
    let debugger = pod.cri.create(&pod.sandbox, config, &sandbox)?;
    pod.cri.start(&debugger)?;
    let request = v1::AttachRequest {
        container_id: debugger.clone(),
        stdin: true,
        stdout: true,
        ..v1::AttachRequest::default()
    };
    let url = pod.cri.wait(pod.cri.runtime.clone().attach(request))?.url;
    let mut client = connect(&url, V5)?.map_err(anyhow::Error::msg)?;
    client.say(0, b"typed in")?;
    client.end(0)?;
    let heard = client.hear(|_| false)?;
    let said = String::from_utf8_lossy(&heard[&1]).into_owned();
    ensure!(said.ends_with("typed in"), "{said}");
    // What it printed before we were there is in its log, as kubectl debug shows it.
    let log = std::fs::read_to_string(pod.logs.path().join("debugger.log"))?;
    ensure!(
        log.lines().any(|line| line.contains(" 1 sleep 86421")),
        "{log}"
    );
    // Our own command leaves the pod to the client that made it.
    let ours = shared::daemon()?.cli(["debug", &pod.sandbox, "--", "true"])?;
    ours.refused(&["CRI client"])?;
    // It goes, its target stays.
    pod.cri.remove(&debugger)?;
    ensure!(pod.output("ps -o args")?.contains("sleep 86421"));
    Ok(())
}

/// Descriptors of a process, and its memory (KiB): what is its own, not what it has
/// of files and of a guest.
pub(crate) fn held(pid: u32) -> anyhow::Result<(usize, u64)> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let rss = rss.context("RssAnon")?.trim().trim_end_matches(" kB");
    Ok((open, rss.parse()?))
}
