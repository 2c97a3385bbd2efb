//! Streams that take minutes or gigabytes.

use crate::streaming::{PATIENCE, Running, V5, held, md5};
use crate::{Test, shared};
use anyhow::{Context, ensure};
use spherule_tests::cri::container_config;
use spherule_tests::websocket::connect;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("thousands_of_commands_leave_nothing", thousands),
    ("gibibyte_goes_through_one_forwarded_port", gibibyte),
    ("gigabyte_that_nobody_reads_is_in_the_log", nobody_reads),
];

/// Open files of the guest, and the memory (KiB) that it has left.
fn guest_held(pod: &Running) -> anyhow::Result<(u64, u64)> {
    let script = "cut -f 1 /proc/sys/fs/file-nr; grep MemAvailable /proc/meminfo | tr -dc 0-9";
    let said = pod.output(script)?;
    let (files, free) = said.split_once('\n').context(said.clone())?;
    Ok((files.parse()?, free.parse()?))
}

fn thousands() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let pod = Running::new("streaming-thousands", "exec sleep 6000")?;
    // Of the guest: processes and cgroups.
    let guest = "ls -d /proc/[0-9]* | wc -l; find /sys/fs/cgroup -type d | wc -l";
    let run = |count: usize| -> anyhow::Result<()> {
        for number in 0..count {
            let url = pod.exec(pod.request("echo $((6 * 7))"))?;
            let mut client = connect(&url, V5)?.map_err(anyhow::Error::msg)?;
            // Every tenth client does not wait for the answer.
            if number % 10 > 0 {
                let heard = client.hear(|_| false)?;
                ensure!(heard[&1] == b"42\n", "{number}: {heard:?}");
            }
        }
        Ok(())
    };
    run(200)?;
    let settled = |before: &str| -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let now = pod.output(guest)?;
            if now == before || start.elapsed() > PATIENCE {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let mut quiet = String::new();
    while quiet != pod.output(guest)? {
        quiet = pod.output(guest)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let vmm = pod.cri.vmm(&pod.sandbox)?.as_raw_nonzero().get();
    let processes = [("daemon", daemon.pid()), ("VMM", vmm.cast_unsigned())];
    let before = processes.map(|(_, pid)| held(pid));
    let (open, free) = guest_held(&pod)?;
    run(3000)?;
    let after = settled(&quiet)?;
    ensure!(after == quiet, "the guest had {quiet}, has {after}");
    for ((name, pid), before) in processes.into_iter().zip(before) {
        let (files, memory) = before?;
        let start = Instant::now();
        let mut now = held(pid)?;
        while now.0 > files && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(200));
            now = held(pid)?;
        }
        eprintln!("{name}: {files} descriptors, {memory} KiB; after 3000 commands {now:?}");
        ensure!(now.0 <= files, "{name}: {now:?}, {files} files before");
        ensure!(
            now.1 < memory + 10_000,
            "{name}: {now:?}, {memory} KiB before"
        );
    }
    // The kernel counts files by CPU and adds them up roughly; one that leaked with
    // each command would be thousands, and so would its page of memory.
    let (now_open, now_free) = guest_held(&pod)?;
    eprintln!("guest: {open} files, {free} KiB left; after 3000 commands {now_open}, {now_free}");
    ensure!(now_open < open + 500, "{now_open} files, {open} before");
    ensure!(
        now_free + 10_000 > free,
        "{now_free} KiB left, {free} before"
    );
    Ok(())
}

fn gibibyte() -> anyhow::Result<()> {
    let server = "exec nc -ll -p 8080 -e sh -c 'head -c 1073741824 | md5sum'";
    let pod = Running::new("streaming-gibibyte", server)?;
    pod.listens(&[8080])?;
    let mut client =
        connect(&pod.forward(8080)?, "v4.channel.k8s.io")?.map_err(anyhow::Error::msg)?;
    let piece: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    let start = Instant::now();
    for _ in 0..1024 {
        client.say(0, &piece)?;
    }
    let heard = client.hear(|heard| heard.get(&0).is_some_and(|said| said.len() >= 34))?;
    eprintln!("1 GiB through one forwarded port in {:?}", start.elapsed());
    ensure!(heard[&0][2..34] == md5(&piece, 1024)?, "{heard:?}");
    Ok(())
}

fn nobody_reads() -> anyhow::Result<()> {
    // Lines of 100 bytes, 1 GB of them; attached to it is one that never reads.
    let line = "x".repeat(99);
    let script = format!("read go; yes {line} | head -n 10000000; sleep 600");
    let mut container = container_config("c", &script);
    container.stdin = true;
    let pod = Running::with("streaming-nobody", container)?;
    let mut stalls = connect(&pod.attach(true)?, V5)?.map_err(anyhow::Error::msg)?;
    stalls.say(0, b"go\n")?;
    let start = Instant::now();
    // Others of its streams go on meanwhile.
    let sleeps = || -> anyhow::Result<bool> {
        // A whole line: the shell has the words in its own.
        let all = pod.output("ps -o args")?;
        Ok(all.lines().any(|line| line.trim() == "sleep 600"))
    };
    while !sleeps()? {
        ensure!(
            start.elapsed() < Duration::from_secs(1800),
            "it still prints"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    eprintln!("1 GB was printed in {:?}", start.elapsed());
    let mut lines = 0u32;
    for read in std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::open(pod.log())?)) {
        ensure!(read?.ends_with(&line), "line {lines} is cut");
        lines += 1;
    }
    ensure!(lines == 10_000_000, "{lines} lines are in the log");
    Ok(())
}
