//! Streams through the streaming server whose client or daemon fails.

use crate::Test;
use crate::streaming::{PATIENCE, Running, V5, held};
use anyhow::{Context, ensure};
use cri_api::v1::ContainerState;
use spherule_tests::Daemon;
use spherule_tests::cri::{Cri, container_config};
use spherule_tests::websocket::{WebSocket, connect};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("daemon_that_dies_ends_its_commands_only", daemon_dies),
    ("daemon_that_is_told_to_end_tells_its_clients", daemon_ends),
    ("client_that_vanishes_in_any_phase_leaves_nothing", phases),
    (
        "attached_client_that_vanishes_in_any_phase_leaves_nothing",
        attached_phases,
    ),
    (
        "client_of_a_port_that_vanishes_in_any_phase_leaves_nothing",
        forwarded_phases,
    ),
    ("reader_that_stalls_stalls_no_other", stalled),
];

/// Waits until no command of the container has this in its line.
fn gone(pod: &Running, word: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while pod.output("ps -o args")?.contains(word) {
        ensure!(start.elapsed() < PATIENCE, "{word} lives on");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn open(url: &str) -> anyhow::Result<WebSocket> {
    connect(url, V5)?.map_err(anyhow::Error::msg)
}

fn daemon_dies() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let config = container_config("c", "exec sleep 600");
    let mut pod = Running::on(&daemon, "streaming-restart", config)?;
    let before = pod.cri.container(&pod.container)?;
    let unused = pod.exec(pod.request("true"))?;
    let mut client = open(&pod.exec(pod.request("echo up; exec sleep 12345"))?)?;
    client.hear(|heard| heard.get(&1).is_some_and(|said| said == b"up\n"))?;
    daemon.kill()?;
    // The connection ends, and no result is made up.
    let end = client.hear(|_| false);
    ensure!(end.is_err(), "{end:?}");

    daemon.restart()?;
    pod.cri = Cri::connect(&daemon)?;
    let after = pod.cri.container(&pod.container)?;
    ensure!(after.state() == ContainerState::ContainerRunning);
    ensure!(after.started_at == before.started_at, "{after:?}");
    gone(&pod, "sleep 12345")?;
    // A URL goes with its daemon.
    ensure!(!matches!(connect(&unused, V5), Ok(Ok(_))), "it was served");
    let heard = open(&pod.exec(pod.request("echo again"))?)?.hear(|_| false)?;
    ensure!(heard[&1] == b"again\n", "{heard:?}");
    Ok(())
}

fn daemon_ends() -> anyhow::Result<()> {
    let mut daemon = Daemon::start()?;
    let script = "nc -ll -p 8080 -e cat & while read word; do echo $word; done";
    let mut config = container_config("c", script);
    config.stdin = true;
    let mut pod = Running::on(&daemon, "streaming-end", config)?;
    let before = pod.cri.container(&pod.container)?;
    pod.output("while ! netstat -ltn | grep -q :8080; do usleep 10000; done")?;
    // An exec that is silent, one that prints on and on, an attach, a port.
    let mut silent = open(&pod.exec(pod.request("echo up; exec sleep 12346"))?)?;
    let mut busy = open(&pod.exec(pod.request("exec yes"))?)?;
    let mut attached = open(&pod.attach(true)?)?;
    attached.say(0, b"word\n")?;
    let mut port =
        connect(&pod.forward(8080)?, "v4.channel.k8s.io")?.map_err(anyhow::Error::msg)?;
    port.say(0, b"ping")?;
    for (client, channel, said) in [
        (&mut silent, 1, &b"up\n"[..]),
        (&mut busy, 1, b"y\n"),
        (&mut attached, 1, b"word\n"),
        (&mut port, 0, b"\x90\x1fping"),
    ] {
        client.hear(|heard| {
            heard
                .get(&channel)
                .is_some_and(|heard| heard.starts_with(said))
        })?;
    }
    // Our own command line's.
    let script = "echo word; sleep 12346";
    let exec = ["exec", &pod.sandbox, "--", "sh", "-c", script];
    let logs = ["logs", "-f", &pod.sandbox];
    let ours = [&exec[..], &logs].map(|args| {
        let mut ours = daemon
            .command(args.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(ours.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line == "word\n", "{line:?}");
        Ok(ours)
    });

    let clients = [(silent, 3), (busy, 3), (attached, 3), (port, 1)];
    let listeners = clients.map(|(mut client, channel)| {
        std::thread::spawn(move || Ok::<_, anyhow::Error>((client.hear(|_| false)?, channel)))
    });
    daemon.terminate()?;
    for listener in listeners {
        let (heard, channel) = listener.join().ok().context("a listener died")??;
        let told = String::from_utf8_lossy(&heard[&channel]);
        ensure!(told.contains("is being restarted"), "{told}");
        ensure!(channel == 1 || told.contains("\"Failure\""), "{told}");
    }
    for ours in ours {
        let out = ours?.wait_with_output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(
            out.status.code() == Some(1) && said.contains("is being restarted"),
            "{out:?}"
        );
    }

    daemon.restart()?;
    pod.cri = Cri::connect(&daemon)?;
    let after = pod.cri.container(&pod.container)?;
    ensure!(after.state() == ContainerState::ContainerRunning);
    ensure!(after.started_at == before.started_at, "{after:?}");
    gone(&pod, "sleep 12346")
}

/// A connection to where a URL leads, and the request that an upgrade needs.
fn unasked(url: &str, protocol: &str) -> anyhow::Result<(TcpStream, String)> {
    let rest = url.strip_prefix("http://").context("an http URL")?;
    let (host, path) = rest.split_once('/').context("a path")?;
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    Ok((TcpStream::connect(host)?, request))
}

/// Clients that go away, each a bit later than the one before; `up` is what they hear
/// once they are served. Returns a URL that none of them has used up.
fn vanish(
    url: impl Fn() -> Result<String, tonic::Status>,
    protocol: &str,
    up: &[u8],
) -> anyhow::Result<String> {
    // Before the URL is used, within the request, right behind it.
    let unused = url()?;
    drop(unasked(&unused, protocol)?);
    for cut in [1, 40, 200] {
        let (mut socket, request) = unasked(&unused, protocol)?;
        socket.write_all(&request.as_bytes()[..cut])?;
    }
    let (mut socket, request) = unasked(&url()?, protocol)?;
    socket.write_all(request.as_bytes())?;
    drop(socket);
    // Within a frame: its length, its mask, what it carries.
    let frame = [0x82, 0xfe, 0x10, 0x00, 1, 2, 3, 4, 0, b'x', b'y'];
    for cut in [1, 3, 6, 11] {
        let (mut socket, request) = unasked(&url()?, protocol)?;
        socket.write_all(request.as_bytes())?;
        let mut answer = BufReader::new(socket.try_clone()?);
        let mut heard = Vec::new();
        while !heard.ends_with(up) {
            ensure!(answer.read_until(b'\n', &mut heard)? > 0, "{heard:?}");
        }
        socket.write_all(&frame[..cut])?;
    }
    Ok(unused)
}

fn phases() -> anyhow::Result<()> {
    let pod = Running::new("streaming-phases", "exec sleep 600")?;
    let sleep = || pod.exec(pod.request("echo up; exec sleep 23456"));
    let url = vanish(sleep, V5, b"up\n")?;
    gone(&pod, "sleep 23456")?;
    // Those who never asked in full have not used the URL up.
    let mut client = open(&url)?;
    client.hear(|heard| heard.get(&1).is_some_and(|said| said == b"up\n"))?;
    drop(client);
    gone(&pod, "sleep 23456")
}

/// Descriptors of the daemon and of a pod's VMM.
fn descriptors(daemon: &Daemon, pod: &Running) -> anyhow::Result<[usize; 2]> {
    let vmm = pod.cri.vmm(&pod.sandbox)?.as_raw_nonzero().get();
    Ok([held(daemon.pid())?.0, held(vmm.cast_unsigned())?.0])
}

/// Waits until neither has more than before.
fn closed(daemon: &Daemon, pod: &Running, before: [usize; 2]) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let now = descriptors(daemon, pod)?;
        if now.iter().zip(before).all(|(now, before)| *now <= before) {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "{before:?} before, now {now:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn attached_phases() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    let script = "while true; do echo up; usleep 100000; done &
        while read word; do echo got $word; done";
    let mut config = container_config("c", script);
    config.stdin = true;
    let pod = Running::on(&daemon, "streaming-attached-phases", config)?;
    // One that stays; all that is made once is there then.
    let mut stays = open(&pod.attach(true)?)?;
    stays.hear(|heard| heard.get(&1).is_some_and(|said| said.ends_with(b"up\n")))?;
    let before = descriptors(&daemon, &pod)?;
    let unused = vanish(|| pod.attach(true), V5, b"up\n")?;
    closed(&daemon, &pod, before)?;
    // The URL is good, the container goes on, and who stays is served on.
    let mut client = open(&unused)?;
    client.hear(|heard| heard.get(&1).is_some_and(|said| said.ends_with(b"up\n")))?;
    stays.say(0, b"word\n")?;
    stays.hear(|heard| {
        let said = heard.get(&1).map(|said| String::from_utf8_lossy(said));
        said.is_some_and(|said| said.contains("got word\n"))
    })?;
    let status = pod.cri.container(&pod.container)?;
    ensure!(status.state() == ContainerState::ContainerRunning);
    drop(client);
    closed(&daemon, &pod, before)
}

fn forwarded_phases() -> anyhow::Result<()> {
    let daemon = Daemon::start()?;
    // What serves a connection ends with it.
    let script = "printf '#!/bin/sh\\necho up\\nexec md5sum -\\n' > /serve; chmod +x /serve
        exec nc -ll -p 8080 -e /serve";
    let pod = Running::on(
        &daemon,
        "streaming-forwarded-phases",
        container_config("c", script),
    )?;
    pod.output("while ! netstat -ltn | grep -q :8080; do usleep 10000; done")?;
    let before = descriptors(&daemon, &pod)?;
    let protocol = "v4.channel.k8s.io";
    let unused = vanish(|| pod.forward(8080), protocol, b"up\n")?;
    closed(&daemon, &pod, before)?;
    gone(&pod, "md5sum -")?;
    let mut client = connect(&unused, protocol)?.map_err(anyhow::Error::msg)?;
    client.hear(|heard| heard.get(&0).is_some_and(|said| said.ends_with(b"up\n")))?;
    drop(client);
    gone(&pod, "md5sum -")?;
    closed(&daemon, &pod, before)
}

/// Lines that are printed, and bytes of each.
const LINES: usize = 150_000;
const LINE: usize = 100;

fn stalled() -> anyhow::Result<()> {
    let line = "x".repeat(LINE - 1);
    let script = format!(
        "read go; yes {line} | head -n {LINES}
         while read word; do echo $word; test $word = end && exit 3; done"
    );
    let mut config = container_config("c", &script);
    config.stdin = true;
    let pod = Running::with("streaming-stalled", config)?;
    let mut stalls = open(&pod.attach(false)?)?;
    let mut reads = open(&pod.attach(false)?)?;
    let mut says = open(&pod.attach(true)?)?;
    let marked = |heard: &[u8]| heard.ends_with(b"marker\n");
    let reader = std::thread::spawn(move || {
        reads.hear(|heard| heard.get(&1).is_some_and(|said| marked(said)))
    });
    says.say(0, b"go\n")?;
    let start = Instant::now();
    while BufReader::new(File::open(pod.log())?).lines().count() < LINES {
        ensure!(start.elapsed() < PATIENCE, "the log lacks lines");
        std::thread::sleep(Duration::from_millis(500));
    }
    // The one that reads is there: on a slow machine it, too, may miss something.
    while !reader.is_finished() {
        ensure!(start.elapsed() < PATIENCE, "the other reader stalls");
        says.say(0, b"marker\n")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    reader.join().ok().context("the reader died")??;
    // Only now the other reads: what was kept for it, and no more.
    says.say(0, b"end\n")?;
    let late = stalls.hear(|_| false)?;
    let kept = late[&1].len();
    ensure!((1..LINES * LINE).contains(&kept), "{kept}");
    let status = String::from_utf8_lossy(&late[&3]);
    ensure!(status.contains("bytes of output were lost"), "{status}");
    Ok(())
}
