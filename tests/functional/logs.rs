//! What containers wrote, as kubectl's users ask for it.

use crate::streaming::{PATIENCE, Running};
use crate::{Test, shared};
use anyhow::{Context, ensure};
use cri_api::v1;
use serde_json::{Value, json};
use spherule_tests::manifest::{container, pod};
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("parts_of_logs_are_shown_as_asked_for", parts),
    ("lines_before_a_given_time_are_left_out", since),
    ("logs_that_are_followed_begin_at_their_tail", follow),
    ("logs_that_are_followed_go_on_over_rotations", rotations),
];

/// A pod whose container ends once, then goes on until /v/end is there.
const SCRIPT: &str = "
    if ! test -e /v/again; then
        touch /v/again
        echo one; echo two; exit 1
    fi
    echo three; echo four; printf half; echo four-and-a-half >&2; printf ' five\\n'
    while ! test -e /v/end; do usleep 100000; done
    echo last";

fn start(name: &str) -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let spec = json!({
        "restartPolicy": "OnFailure",
        "volumes": [{"name": "v", "emptyDir": {}}],
    });
    let containers = [container("c", SCRIPT, mounts)];
    daemon.run_detached(&pod(name, &containers, spec))?;
    daemon.wait_for_output(name, " five\n")?;
    // Each stream comes by a way of its own.
    let start = Instant::now();
    while !daemon.cli(["logs", name])?.stderr.ends_with("-half\n") {
        ensure!(start.elapsed() < PATIENCE, "nothing on standard error");
    }
    Ok(())
}

fn parts() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    start("logs")?;
    let logs = |args: &[&str]| {
        daemon
            .cli(["logs", "logs"].into_iter().chain(args.iter().copied()))?
            .ok()
    };
    ensure!(logs(&[])? == "one\ntwo\nthree\nfour\nhalf five\n");
    ensure!(logs(&["--all-containers", "--tail=-1"])? == logs(&[])?);
    ensure!(logs(&["--tail", "0"])?.is_empty());
    // stderr's line is one of the last, too.
    let two = daemon.cli(["logs", "logs", "--tail", "2"])?;
    ensure!(two.stderr == "four-and-a-half\n", "{two}");
    ensure!(two.ok()? == "half five\n");
    // Over both instances.
    ensure!(logs(&["--tail=5"])? == "two\nthree\nfour\nhalf five\n");
    ensure!(logs(&["--previous"])? == "one\ntwo\n");
    ensure!(logs(&["-p", "--tail", "1", "--prefix"])? == "[c] two\n");

    // Times are the records' own, and --since-time understands them.
    let timed = logs(&["--timestamps"])?;
    let lines: Vec<(&str, &str)> = timed.lines().filter_map(|l| l.split_once(' ')).collect();
    ensure!(lines.len() == 5 && lines[4].1 == "half five", "{timed}");
    ensure!(lines.is_sorted_by_key(|line| line.0), "{timed}");
    let (second, _) = lines[2];
    ensure!(logs(&["--since-time", second])? == "three\nfour\nhalf five\n");
    ensure!(logs(&["--since", "1h"])? == logs(&[])?);
    ensure!(logs(&["--since-time", "2100-01-01T00:00:00Z"])?.is_empty());

    let wrong: [(&[&str], &str); 4] = [
        (&["--since", "soon"], "soon"),
        (&["--since", "1s", "--since-time", second], "--since-time"),
        (&["-c", "c", "--all-containers"], "--all-containers"),
        (&["-c", "ghost"], "ghost"),
    ];
    for (args, word) in wrong {
        let refused = daemon.cli(["logs", "logs"].into_iter().chain(args.iter().copied()))?;
        ensure!(
            refused.code != Some(0) && refused.stderr.contains(word),
            "{refused}"
        );
    }
    daemon.cli(["rm", "--force", "logs"])?.ok()?;
    Ok(())
}

fn since() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    start("logs-since")?;
    std::thread::sleep(Duration::from_secs(3));
    let begun = Instant::now();
    // Killed where its container is faster to end.
    daemon.cli(["exec", "logs-since", "--", "touch", "/v/end"])?;
    daemon.wait_for_output("logs-since", "last\n")?;
    loop {
        // From a second before what came last, if the command begins within that
        // second; else it may be too late for that, too.
        let since = format!("{}ms", begun.elapsed().as_millis() + 1000);
        let said = daemon
            .cli(["logs", "logs-since", "--since", &since])?
            .ok()?;
        if said == "last\n" {
            return Ok(());
        }
        ensure!(said.is_empty(), "{since}: {said}");
        ensure!(begun.elapsed() < PATIENCE, "nothing came");
    }
}

fn follow() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    start("logs-follow")?;
    let follows = daemon
        .command(["logs", "-f", "--tail", "1", "logs-follow"])
        .stdout(Stdio::piped())
        .spawn()?;
    // Killed where its container is faster to end.
    daemon.cli(["exec", "logs-follow", "--", "touch", "/v/end"])?;
    let out = follows.wait_with_output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    // What was the last line when it began to read.
    ensure!(
        matches!(&*said, "half five\nlast\n" | "last\n") && out.status.success(),
        "{out:?}"
    );
    let over = |pod: &Value| pod["phase"] == "PHASE_SUCCEEDED";
    daemon.wait_for("logs-follow", "over", over)?;
    // It has ended well, and the one before it has not.
    let previous = daemon.cli(["logs", "--previous", "logs-follow"])?;
    ensure!(previous.ok()? == "one\ntwo\n");
    Ok(())
}

fn rotations() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let script = "i=0; until test -e /end; do echo line $i; i=$((i + 1)); done; echo last $i";
    let pod = Running::new("logs-rotations", script)?;
    let mut follows = daemon
        .command(["logs", "-f", &pod.sandbox])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(follows.stdout.take().context("stdout")?);
    // It is there before the first rotation.
    let mut said = String::new();
    stdout.read_line(&mut said)?;
    let reader = std::thread::spawn(move || stdout.read_to_string(&mut said).map(|_| said));
    for number in 0..4 {
        // A file with something in it each time.
        let start = Instant::now();
        while std::fs::metadata(pod.log())?.len() < 10_000 {
            ensure!(start.elapsed() < PATIENCE, "nothing is printed");
            std::thread::sleep(Duration::from_millis(10));
        }
        let rotated = pod.log().with_extension(format!("log.{number}"));
        std::fs::rename(pod.log(), rotated)?;
        let request = v1::ReopenContainerLogRequest {
            container_id: pod.container.clone(),
        };
        let mut call = pod.cri.runtime.clone();
        pod.cri.wait(call.reopen_container_log(request))?;
    }
    pod.output("touch /end")?;
    pod.cri.ended(&pod.container)?;
    let said = reader.join().ok().context("the reader died")??;
    ensure!(follows.wait()?.success());
    let (lines, last) = said
        .trim_end()
        .rsplit_once("\nlast ")
        .context("a last line")?;
    let mut count = 0_u64;
    for line in lines.lines() {
        ensure!(
            line == format!("line {count}"),
            "{line:?} instead of {count}"
        );
        count += 1;
    }
    ensure!(last.parse() == Ok(count), "{last} after {count} lines");
    // Without following it is the present file, as in kubectl.
    let present = daemon.cli(["logs", &pod.sandbox])?.ok()?;
    ensure!(present.ends_with(&format!("last {count}\n")));
    ensure!(!present.starts_with("line 0\n"), "{} bytes", present.len());
    Ok(())
}
