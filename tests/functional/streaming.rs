//! Exec and PortForward through the streaming server, from the CRI call to the
//! process in the guest.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::Value;
use spherule_tests::cri::{Cri, container_config, refused, sandbox_config};
use spherule_tests::websocket::connect;
use std::time::{Duration, Instant};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    ("exec_passes_streams_both_ways_and_the_exit_code", exec),
    ("client_that_vanishes_takes_its_command_along", vanish),
    ("port_is_forwarded", forward),
];

const V5: &str = "v5.channel.k8s.io";
const PATIENCE: Duration = Duration::from_secs(120);

/// What makes a request wrong.
type Change = fn(&mut v1::ExecRequest);

/// A container that runs, in a sandbox of its own.
struct Running {
    cri: Cri,
    sandbox: String,
    container: String,
    _logs: tempfile::TempDir,
}

impl Running {
    fn new(name: &str, script: &str) -> anyhow::Result<Self> {
        let cri = Cri::connect(&*shared::daemon()?)?;
        let logs = tempfile::tempdir()?;
        let config = sandbox_config(name, logs.path());
        let sandbox = cri.run(&config)?;
        let container = container_config("c", script);
        let container = cri.create(&sandbox, container, &config)?;
        let running = Self {
            cri,
            sandbox,
            container,
            _logs: logs,
        };
        running.cri.start(&running.container)?;
        Ok(running)
    }

    fn request(&self, script: &str) -> v1::ExecRequest {
        v1::ExecRequest {
            container_id: self.container.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        }
    }

    fn exec(&self, request: v1::ExecRequest) -> Result<String, tonic::Status> {
        let mut call = self.cri.runtime.clone();
        Ok(self.cri.wait(call.exec(request))?.url)
    }

    /// What a command prints.
    fn output(&self, script: &str) -> anyhow::Result<String> {
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
    let start = Instant::now();
    while !pod.output("netstat -ltn")?.contains(":8080 ") {
        ensure!(start.elapsed() < PATIENCE, "the server does not listen");
        std::thread::sleep(Duration::from_millis(100));
    }
    let request = |port| v1::PortForwardRequest {
        pod_sandbox_id: pod.sandbox.clone(),
        port: vec![port],
    };
    let url = |port| {
        let mut call = pod.cri.runtime.clone();
        pod.cri.wait(call.port_forward(request(port)))
    };
    let protocol = "v4.channel.k8s.io";
    let mut client = connect(&url(8080)?.url, protocol)?.map_err(anyhow::Error::msg)?;
    client.say(0, b"ping")?;
    // The port's number comes first.
    let heard = client.hear(|heard| heard.get(&0).is_some_and(|said| said.len() >= 6))?;
    ensure!(heard[&0] == b"\x90\x1fping", "{heard:?}");
    drop(client);

    let mut client = connect(&url(8081)?.url, protocol)?.map_err(anyhow::Error::msg)?;
    let heard = client.hear(|_| false)?;
    let told = String::from_utf8_lossy(&heard[&1][2..]).into_owned();
    ensure!(told.contains("8081"), "{told}");
    refused(url(0), Code::InvalidArgument, &["port"])
}
