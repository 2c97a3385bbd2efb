//! Streams of commands, attached containers and forwarded ports, by WebSocket as a
//! kubelet's client has them: how soon a command answers, how much goes through, and
//! what that costs, beside a plain copy through a unix socket of the same machine.

use crate::report::{Collected, Section};
use crate::statistics::Summary;
use anyhow::{Context, ensure};
use cri_api::v1;
use rustix::time::{ClockId, clock_gettime};
use spherule_tests::Daemon;
use spherule_tests::cri::{Cri, container_config, sandbox_config};
use spherule_tests::websocket::{self, Channels, WebSocket};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Commands whose latency is measured.
const COMMANDS: usize = 50;
/// Bytes of a run.
const SIZE: usize = 64 << 20;
const MB: f64 = 1e6;
/// Channels of the protocol.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
/// Clock ticks a second of /proc/PID/stat, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Sends [`SIZE`] bytes to us; MB/s.
type Way = fn(&Pod<'_>) -> anyhow::Result<f64>;

/// Measures on a daemon that has the busybox image.
pub(crate) fn measure(daemon: &Daemon, runs: usize) -> anyhow::Result<Vec<Section>> {
    eprintln!("streams");
    let pod = Pod::new(daemon)?;
    let mut latency = Collected::default();
    let mut commands = Vec::new();
    let mut trips = Vec::new();
    let mut plain = RoundTrips::new()?;
    for _ in 0..COMMANDS {
        let (first, exit) = pod.command()?;
        let trip = plain.one()?;
        latency.add("exec: request to first byte", first);
        latency.add("exec: request to exit", exit);
        latency.add("unix socket: round trip", trip);
        commands.push((first, exit));
        trips.push(trip);
    }
    // By the middle one: single round trips are too short to divide by.
    let trip = Summary::of(trips).context("round trips")?.median;
    let mut ratios = Collected::default();
    for (first, exit) in commands {
        ratios.add("exec: request to first byte", first / trip);
        ratios.add("exec: request to exit", exit / trip);
    }
    let mut rates = Collected::default();
    let mut costs = Collected::default();
    for run in 1..=runs {
        eprintln!("streams: run {run} of {runs}");
        let (plain, plain_cost) = plain_copy()?;
        rates.add("unix socket, MB/s", plain);
        costs.add("unix socket, both ends", per_gb(plain_cost)?);
        let ways: [(&str, Way); 3] = [
            ("exec stdout", |pod| pod.exec_stdout()),
            ("attach", |pod| pod.attach()),
            ("port-forward", |pod| pod.forward()),
        ];
        for (name, way) in ways {
            let before = pod.cpu_seconds()?;
            let rate = way(&pod).context(name)?;
            let cost = pod.cpu_seconds()? - before;
            rates.add(&format!("{name}, MB/s"), rate);
            rates.add(&format!("{name}, share of the unix socket's"), rate / plain);
            if name == "attach" {
                let lost = 100.0 - pod.kept.get() * 100.0;
                rates.add("attach, % of the output lost", lost);
            }
            costs.add(name, per_gb(cost)?);
            costs.add(
                &format!("{name}, times the unix socket's"),
                cost / plain_cost,
            );
        }
    }
    pod.cri.remove_pod(&pod.sandbox)?;
    Ok(vec![
        latency.section("commands, ms"),
        ratios.section("commands, times a unix socket's round trip"),
        rates.section("streams of 64 MiB to the client"),
        costs.section("streams: CPU seconds of daemon, VMM and QEMU per GB"),
    ])
}

/// A socket whose other end says what it hears.
struct RoundTrips(UnixStream);

impl RoundTrips {
    fn new() -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // Ends with our end of the socket.
        std::thread::spawn(move || std::io::copy(&mut &theirs, &mut &theirs));
        Ok(Self(ours))
    }

    /// Milliseconds of a message there and back.
    fn one(&mut self) -> anyhow::Result<f64> {
        let mut message = *b"hello";
        let start = Instant::now();
        self.0.write_all(&message)?;
        self.0.read_exact(&mut message)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// MB/s of a pair of threads and a socket between them, and the CPU seconds of both.
fn plain_copy() -> anyhow::Result<(f64, f64)> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let before = own_cpu_seconds();
    let start = Instant::now();
    let writer = std::thread::spawn(move || {
        let piece = vec![7; 64 << 10];
        (0..SIZE / piece.len()).try_for_each(|_| theirs.write_all(&piece))
    });
    let (mut piece, mut got) = (vec![0; 64 << 10], 0);
    while got < SIZE {
        got += ours.read(&mut piece)?;
    }
    let rate = rate(start.elapsed())?;
    writer.join().ok().context("the writer died")??;
    Ok((rate, own_cpu_seconds() - before))
}

/// CPU time so far of this process.
fn own_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).map_or(0.0, |time| time.as_secs_f64())
}

/// Seconds for [`SIZE`] bytes as seconds for a gigabyte.
fn per_gb(seconds: f64) -> anyhow::Result<f64> {
    Ok(seconds * 1e3 * MB / f64::from(u32::try_from(SIZE)?))
}

fn rate(time: Duration) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(SIZE)?) / MB / time.as_secs_f64())
}

/// A container that prints when it is told to, and a server beside it.
struct Pod<'a> {
    daemon: &'a Daemon,
    cri: Cri,
    sandbox: String,
    container: String,
    /// How often the container was told to print.
    prints: Cell<u32>,
    /// Share of the last print that an attached client got: one that reads too slowly
    /// loses what a container cannot be held up for.
    kept: Cell<f64>,
}

impl<'a> Pod<'a> {
    fn new(daemon: &'a Daemon) -> anyhow::Result<Self> {
        let cri = Cri::connect(daemon)?;
        let logs = daemon.dir().join("bench-streams");
        let config = sandbox_config("bench-streams", &logs);
        let sandbox = cri.run(&config)?;
        let print = format!("yes a line as long as lines are, mostly | head -c {SIZE}");
        let script = format!(
            "nc -ll -p 80 -e head -c {SIZE} /dev/zero &
             while read line; do {print}; sleep 1; echo $line; done"
        );
        let mut c = container_config("c", &script);
        c.stdin = true;
        let container = cri.create(&sandbox, c, &config)?;
        cri.start(&container)?;
        let pod = Self {
            daemon,
            cri,
            sandbox,
            container,
            prints: Cell::new(0),
            kept: Cell::new(1.0),
        };
        // Until the server listens.
        let listens = "while ! netstat -ltn | grep -q :80; do usleep 10000; done";
        hear(&mut pod.exec(listens)?, STDOUT, 0)?;
        Ok(pod)
    }

    fn exec(&self, script: &str) -> anyhow::Result<WebSocket> {
        let request = v1::ExecRequest {
            container_id: self.container.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            stdout: true,
            ..v1::ExecRequest::default()
        };
        let answer = self.cri.wait(self.cri.runtime.clone().exec(request))?;
        open(&answer.url, "v5.channel.k8s.io")
    }

    /// Milliseconds to the first byte of a command and to its exit.
    fn command(&self) -> anyhow::Result<(f64, f64)> {
        let start = Instant::now();
        let mut socket = self.exec("echo hello")?;
        // An empty message says that the channels are there.
        socket.hear(|heard| heard.get(&STDOUT).is_some_and(|said| !said.is_empty()))?;
        let first = start.elapsed();
        socket.hear(|heard| heard.contains_key(&ERROR))?;
        let exit = start.elapsed();
        Ok((first.as_secs_f64() * 1e3, exit.as_secs_f64() * 1e3))
    }

    fn exec_stdout(&self) -> anyhow::Result<f64> {
        let start = Instant::now();
        let script = format!("head -c {SIZE} /dev/zero");
        hear(&mut self.exec(&script)?, STDOUT, SIZE)?;
        rate(start.elapsed())
    }

    fn attach(&self) -> anyhow::Result<f64> {
        let request = v1::AttachRequest {
            container_id: self.container.clone(),
            stdin: true,
            stdout: true,
            ..v1::AttachRequest::default()
        };
        let answer = self.cri.wait(self.cri.runtime.clone().attach(request))?;
        let mut socket = open(&answer.url, "v5.channel.k8s.io")?;
        let number = self.prints.get() + 1;
        self.prints.set(number);
        // Comes a second after the output, where not all of that came.
        let end = format!("end {number}\n");
        let start = Instant::now();
        socket.say(STDIN, end.as_bytes())?;
        let heard = socket.hear(|heard| {
            let said = heard.get(&STDOUT);
            said.is_some_and(|said| said.len() >= SIZE || said.ends_with(end.as_bytes()))
        })?;
        let took = start.elapsed();
        let got = heard.get(&STDOUT).map_or(0, Vec::len);
        let kept = f64::from(u32::try_from(got)?) / f64::from(u32::try_from(SIZE)?);
        self.kept.set(kept.min(1.0));
        Ok(rate(took)? * self.kept.get())
    }

    fn forward(&self) -> anyhow::Result<f64> {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: self.sandbox.clone(),
            port: vec![80],
        };
        let answer = self
            .cri
            .wait(self.cri.runtime.clone().port_forward(request))?;
        let start = Instant::now();
        let mut socket = open(&answer.url, "v4.channel.k8s.io")?;
        // The port's number comes first.
        hear(&mut socket, 0, SIZE + 2)?;
        rate(start.elapsed())
    }

    /// CPU time so far of all processes of this daemon.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut ticks = ticks_of(Path::new(&format!("/proc/{}", self.daemon.pid())));
        for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
            let cwd = std::fs::read_link(entry.path().join("cwd"));
            // VMMs and their QEMUs stand in their pods' directories.
            if cwd.is_ok_and(|cwd| cwd.starts_with(self.daemon.run_dir())) {
                ticks += ticks_of(&entry.path());
            }
        }
        Ok(ticks / TICKS)
    }
}

/// User and system time; of a process that has gone nothing.
fn ticks_of(process: &Path) -> f64 {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    // A name may hold blanks and parentheses.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum()
}

fn open(url: &str, protocol: &str) -> anyhow::Result<WebSocket> {
    websocket::connect(url, protocol)?.map_err(anyhow::Error::msg)
}

/// Listens until a channel has said so many bytes, or all.
fn hear(socket: &mut WebSocket, channel: u8, size: usize) -> anyhow::Result<()> {
    let said = |heard: &Channels| heard.get(&channel).map_or(0, Vec::len);
    let heard = socket.hear(|heard| said(heard) >= size.max(1))?;
    ensure!(
        said(&heard) >= size,
        "{} of {size} bytes came",
        said(&heard)
    );
    Ok(())
}
