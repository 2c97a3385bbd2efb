//! Runs the kernel's own build, so that the same inputs give the same bytes,
//! and shows how far it is.

use super::config::Wanted;
use anyhow::{Context, bail};
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Steps that a build of this configuration has, for the percentage shown.
const STEPS: usize = 2072;
/// How often a build says where it is, when its output is no terminal.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// Lines of the build's output shown when it fails.
const SHOWN_ON_FAILURE: usize = 30;
/// What the kernel says of when and by whom it was built: the same everywhere.
const BUILT_AT: &str = "Thu Jan  1 00:00:00 UTC 2026";
const BUILT_AT_SECONDS: &str = "1767225600";
const BUILT_BY: &str = "spherule";

/// Writes the configuration into the folder of objects, and checks that each
/// option took.
pub(super) fn configure(tree: &Path, objects: &Path, wanted: &Wanted) -> anyhow::Result<()> {
    fs::create_dir_all(objects).with_context(|| format!("cannot make {}", objects.display()))?;
    let fragments = objects.join("wanted.config");
    fs::write(&fragments, &wanted.text)
        .with_context(|| format!("cannot write {}", fragments.display()))?;
    let out = make(tree, objects)
        .arg("allnoconfig")
        .env("KCONFIG_ALLCONFIG", &fragments)
        .output()
        .context("cannot start make")?;
    if !out.status.success() {
        bail!(
            "the kernel's configuration failed: {}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let made = objects.join(".config");
    let text =
        fs::read_to_string(&made).with_context(|| format!("cannot read {}", made.display()))?;
    wanted.check(&text)
}

/// Builds `vmlinux`, with progress on standard error and all output in
/// `build.log`.
pub(super) fn build(tree: &Path, objects: &Path) -> anyhow::Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let log_path = objects.join("build.log");
    let mut log = fs::File::create(&log_path)
        .with_context(|| format!("cannot write {}", log_path.display()))?;
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    let mut command = make(tree, objects);
    command
        .arg(format!("--jobs={jobs}"))
        .arg("vmlinux")
        .stdout(writer.try_clone().context("cannot share a pipe")?)
        .stderr(writer);
    let mut child = command.spawn().context("cannot start make")?;
    // The write ends that stay here would keep the pipe from ending.
    drop(command);

    let mut progress = Progress::new();
    let mut last = std::collections::VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line =
            String::from_utf8_lossy(&line.context("cannot read make's output")?).into_owned();
        writeln!(log, "{line}").context("cannot write the build's log")?;
        progress.line(&line);
        last.push_back(line);
        if last.len() > SHOWN_ON_FAILURE {
            last.pop_front();
        }
    }
    progress.end();
    let status = child.wait().context("cannot wait for make")?;
    if !status.success() {
        bail!(
            "the kernel's build failed: {status}; all of its output is in {}, the end of it:\n{}",
            log_path.display(),
            last.make_contiguous().join("\n")
        );
    }
    Ok(())
}

/// Puts the stripped kernel, its symbols and its configuration into `kept`, in
/// one step.
pub(super) fn keep(objects: &Path, kept: &Path) -> anyhow::Result<()> {
    let parent = kept.parent().context("a kept kernel lies in a folder")?;
    let new = tempfile::Builder::new()
        .prefix("new-")
        .tempdir_in(parent)
        .context("cannot make a folder for the built kernel")?;
    let status = Command::new("strip")
        .arg("--strip-all")
        .arg("-o")
        .arg(new.path().join("vmlinux"))
        .arg(objects.join("vmlinux"))
        .status()
        .context("cannot start strip")?;
    if !status.success() {
        bail!("strip of the built kernel failed: {status}");
    }
    // An oops names addresses only: these files turn them into names.
    for (from, to) in [("System.map", "System.map"), (".config", "config")] {
        fs::copy(objects.join(from), new.path().join(to))
            .with_context(|| format!("cannot keep {from}"))?;
    }
    if kept.exists() {
        fs::remove_dir_all(kept).with_context(|| format!("cannot replace {}", kept.display()))?;
    }
    fs::rename(new.keep(), kept).with_context(|| format!("cannot make {}", kept.display()))
}

/// `make` for the kernel, with nothing of the user's environment that would
/// change its bytes.
fn make(tree: &Path, objects: &Path) -> Command {
    let mut output = std::ffi::OsString::from("O=");
    output.push(objects);
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(tree)
        .arg(output)
        .args(["ARCH=x86_64", "KBUILD_VERBOSE=0"]);
    for variable in [
        "ARCH",
        "CC",
        "CROSS_COMPILE",
        "HOSTCFLAGS",
        "KAFLAGS",
        "KBUILD_CFLAGS",
        "KCFLAGS",
        "KCPPFLAGS",
        "LD",
        "LLVM",
        "LOCALVERSION",
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "V",
        "W",
    ] {
        make.env_remove(variable);
    }
    make.env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("KBUILD_BUILD_TIMESTAMP", BUILT_AT)
        .env("KBUILD_BUILD_USER", BUILT_BY)
        .env("KBUILD_BUILD_HOST", BUILT_BY)
        .env("KBUILD_BUILD_VERSION", "1")
        .env("SOURCE_DATE_EPOCH", BUILT_AT_SECONDS);
    make
}

/// Shows how far the build is: one changing line on a terminal, otherwise a
/// line from time to time.
struct Progress {
    terminal: bool,
    steps: usize,
    started: Instant,
    reported: Instant,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            terminal: io::stderr().is_terminal(),
            steps: 0,
            started: now,
            reported: now,
        }
    }

    fn line(&mut self, line: &str) {
        let Some(what) = step_of(line) else { return };
        self.steps += 1;
        let percent = percent(self.steps);
        if self.terminal {
            eprint!("\r\x1b[K    {percent:3} %  {what}");
        } else if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            eprintln!(
                "    {percent:3} %  {} steps, {} s",
                self.steps,
                self.seconds()
            );
        }
    }

    fn end(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("    {} steps in {} s", self.steps, self.seconds());
    }

    fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

/// What a line of make's output says is being made: `  CC      fs/open.o`.
fn step_of(line: &str) -> Option<&str> {
    let what = line.strip_prefix("  ")?.trim_start();
    let (verb, _) = what.split_once(' ')?;
    verb.chars()
        .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        .then_some(what)
}

/// Never 100 before the end: other sources have a few more steps.
fn percent(steps: usize) -> usize {
    (steps * 100 / STEPS).min(99)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_other_output() {
        assert_eq!(step_of("  CC      fs/open.o"), Some("CC      fs/open.o"));
        assert_eq!(
            step_of("  HOSTCC  scripts/kconfig/conf.o"),
            Some("HOSTCC  scripts/kconfig/conf.o")
        );
        for other in [
            "make[1]: Entering directory '/x'",
            "",
            "  ",
            "  error: no",
            "CC fs/open.o",
        ] {
            assert_eq!(step_of(other), None, "{other:?}");
        }
    }

    #[test]
    fn percentage_ends_below_a_hundred() {
        assert_eq!(
            (percent(0), percent(STEPS / 2), percent(10 * STEPS)),
            (0, 50, 99)
        );
    }

    #[test]
    fn built_at_names_one_moment_twice() {
        let out = Command::new("date")
            .args(["-u", "-d", BUILT_AT, "+%s"])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap().trim(),
            BUILT_AT_SECONDS
        );
    }
}
