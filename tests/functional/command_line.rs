//! The command line by itself: completions, terminals, readers that go away.

use crate::{Test, shared};
use anyhow::{Context, ensure};
use serde_json::json;
use spherule_tests::manifest::one;
use spherule_tests::program;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("ps_shows_a_table_on_a_terminal_and_json_on_request", ps),
    ("run_on_a_terminal_shows_progress_and_then_output", run),
    ("reader_that_goes_away_is_no_crash", closed_pipe),
];

pub(crate) const BASH: &[Test] = &[("completions_are_accepted_by_bash", || completions("bash"))];
pub(crate) const ZSH: &[Test] = &[("completions_are_accepted_by_zsh", || completions("zsh"))];
pub(crate) const FISH: &[Test] = &[("completions_are_accepted_by_fish", || completions("fish"))];

/// The script for a shell is one that this shell parses without a word.
fn completions(shell: &str) -> anyhow::Result<()> {
    let out = Command::new(program("spherule"))
        .args(["completions", shell])
        .output()?;
    ensure!(out.status.success(), "{out:?}");
    let script = String::from_utf8(out.stdout)?;
    for word in ["serve", "completions", "restart-backoff"] {
        ensure!(script.contains(word), "no {word:?}");
    }
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(script.as_bytes())?;
    let parsed = Command::new(shell).arg("-n").arg(file.path()).output()?;
    let quiet = parsed.stdout.is_empty() && parsed.stderr.is_empty();
    ensure!(parsed.status.success() && quiet, "{parsed:?}");
    Ok(())
}

/// Runs a `spherule` command on a terminal of its own; what that showed.
fn on_terminal(args: &[&str]) -> anyhow::Result<(Output, String)> {
    let command = shared::daemon()?.command(args.iter().copied());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words
        .map(|w| format!("'{}'", w.to_string_lossy()))
        .collect();
    let out = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &line.join(" "),
            "/dev/null",
        ])
        .stdin(Stdio::null())
        .output()
        .context("script, of the package bsdutils")?;
    let shown = String::from_utf8_lossy(&out.stdout).replace("\r\n", "\n");
    Ok((out, shown))
}

fn ps() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    daemon.run(&one("on-terminal", "true", json!({})))?.ok()?;
    let (out, shown) = on_terminal(&["ps", "--all"])?;
    ensure!(out.status.success(), "{out:?}");
    let mut lines = shown.lines();
    let heading: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let want = "ID NAMESPACE NAME READY STATUS RESTARTS IP ENGINE CREATED";
    ensure!(heading.join(" ") == want, "{shown}");
    let line = lines.find(|l| l.contains("on-terminal"));
    ensure!(line.is_some_and(|l| l.contains("Succeeded")), "{shown}");
    let pods = daemon.cli(["ps", "--all", "--output", "json"])?.json()?;
    let pods = pods.as_array().context("an array")?;
    let pod = pods.iter().find(|p| p["name"] == "on-terminal");
    ensure!(
        pod.is_some_and(|p| p["phase"] == "PHASE_SUCCEEDED"),
        "{pods:?}"
    );
    Ok(())
}

fn run() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    let manifest = daemon.dir().join("terminal.json");
    std::fs::write(
        &manifest,
        one("run-on-terminal", "echo shown; exit 4", json!({})),
    )?;
    let (out, shown) = on_terminal(&["run", "-f", &manifest.to_string_lossy()])?;
    ensure!(out.status.code() == Some(4), "{out:?}");
    // The progress line is there, and gone before the output.
    let (before, _) = shown.split_once("[c] shown\n").context(shown.clone())?;
    ensure!(before.contains("run-on-terminal is "), "{shown:?}");
    ensure!(shown.contains("exited with 4"), "{shown:?}");
    Ok(())
}

fn closed_pipe() -> anyhow::Result<()> {
    let daemon = shared::daemon()?;
    // More than a pipe holds.
    let long = one("long", &format!("true {}", "x".repeat(100_000)), json!({}));
    daemon.run(&long)?.ok()?;
    for args in [
        &["inspect", "long"][..],
        &["ps", "--all", "--output", "json"],
    ] {
        let mut child = daemon
            .command(args.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        let out = child.wait_with_output()?;
        ensure!(line == "[\n", "{line:?}");
        ensure!(out.stderr.is_empty(), "{out:?}");
    }
    Ok(())
}
