//! One command to one plugin.

use super::answer::{ErrorAnswer, ResultError, VersionAnswer};
use super::process::{self, MAX_ANSWER_LEN, RunError};
use super::version::SpecVersion;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Attach the pod.
    Add,
    /// Say whether the attachment is as it was made.
    Check,
    /// Detach the pod.
    Del,
    /// Drop attachments of pods that are no more.
    Gc,
    /// Say whether an ADD would work.
    Status,
    /// Say which versions it speaks.
    Version,
}

impl Command {
    /// As CNI_COMMAND has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A plugin failed; `failure` says how, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("CNI plugin {plugin:?} of network {network:?} failed on {command}")]
pub struct PluginError {
    /// The plugin's name.
    pub plugin: String,
    /// The configuration list's name.
    pub network: String,
    /// What it was asked to do.
    pub command: Command,
    /// How it failed.
    #[source]
    pub failure: PluginFailure,
}

/// How a plugin failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginFailure {
    /// There is no such program.
    #[error(
        "no program {name:?} in {}; install the plugin, or name its directory in the configuration",
        directories(.searched)
    )]
    Missing {
        /// The program's name.
        name: String,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The program cannot be started.
    #[error("cannot start {path}; is it built for this machine?", path = path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pipes to it failed.
    #[error("cannot speak with it")]
    Pipe(#[source] io::Error),
    /// It was killed at the deadline.
    #[error("it did not answer within {} s and was killed{}", after.as_secs_f32(), said(.stderr))]
    TimedOut {
        /// The deadline.
        after: Duration,
        /// The end of its error output.
        stderr: String,
    },
    /// It said more than is read.
    #[error("it answered more than {MAX_ANSWER_LEN} bytes and was killed")]
    TooMuch,
    /// A signal ended it.
    #[error("signal {signal} ended it{}", said(.stderr))]
    Killed {
        /// The signal's number.
        signal: i32,
        /// The end of its error output.
        stderr: String,
    },
    /// It failed without a CNI error.
    #[error("it exited with code {code}{}", said(.output))]
    Exited {
        /// Its exit code.
        code: i32,
        /// The end of its error output, or its answer.
        output: String,
    },
    /// It reported an error as the specification has it.
    #[error("it says: {message}{}{} (CNI error {code}{})", if details.is_empty() { "" } else { ": " }, details, meaning(*.code))]
    Reported {
        /// The code (50 and 51: not available, see STATUS; 100 and up are the plugin's own).
        code: i64,
        /// Its message.
        message: String,
        /// Its details.
        details: String,
    },
    /// It succeeded, but its answer is no result.
    #[error(transparent)]
    Result(ResultError),
    /// It does not speak the list's version.
    #[error(
        "it does not speak CNI {wanted}, only {}; lower cniVersion in the network's configuration or update the plugin",
        .spoken.join(", ")
    )]
    Version {
        /// The version of the list.
        wanted: SpecVersion,
        /// Those it speaks.
        spoken: Vec<String>,
    },
}

fn directories(list: &[PathBuf]) -> String {
    let names: Vec<String> = list.iter().map(|d| d.display().to_string()).collect();
    names.join(" or ")
}

fn said(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("; it said: {text}")
    }
}

/// The specification's own codes.
fn meaning(code: i64) -> &'static str {
    match code {
        1 => ", incompatible version",
        2 => ", unsupported field",
        3 => ", container unknown or does not exist",
        4 => ", invalid environment",
        5 => ", I/O failure",
        6 => ", content not decoded",
        7 => ", invalid network configuration",
        11 => ", try again later",
        50 => ", the plugin is not available",
        51 => ", the plugin is not available, pods may have limited connectivity",
        _ => "",
    }
}

/// The program of a plugin: the first executable file of that name.
pub(crate) fn find(name: &str, directories: &[PathBuf]) -> Result<PathBuf, PluginFailure> {
    directories
        .iter()
        .map(|directory| directory.join(name))
        .find(|path| {
            path.metadata()
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| PluginFailure::Missing {
            name: name.to_owned(),
            searched: directories.to_vec(),
        })
}

/// Runs a plugin; its answer as it gave it.
pub(crate) fn run(
    program: &Path,
    command: Command,
    env: &[(&str, String)],
    input: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>, PluginFailure> {
    let mut all = vec![("CNI_COMMAND", command.as_str().to_owned())];
    all.extend(env.iter().cloned());
    let output = process::run(program, &all, input, timeout).map_err(|e| match e {
        RunError::Spawn(source) => PluginFailure::Start {
            path: program.to_owned(),
            source,
        },
        RunError::Pipe(source) => PluginFailure::Pipe(source),
        RunError::TimedOut(stderr) => PluginFailure::TimedOut {
            after: timeout,
            stderr,
        },
        RunError::TooMuch => PluginFailure::TooMuch,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    if let Some(signal) = output.status.signal() {
        let stderr = output.stderr;
        return Err(PluginFailure::Killed { signal, stderr });
    }
    Err(
        match serde_json::from_slice::<ErrorAnswer>(&output.stdout) {
            Ok(error) if error.code != 0 || !error.msg.is_empty() => PluginFailure::Reported {
                code: error.code,
                message: bounded(&error.msg),
                details: bounded(&error.details),
            },
            _ => PluginFailure::Exited {
                code: output.status.code().unwrap_or(-1),
                output: if output.stderr.is_empty() {
                    bounded(String::from_utf8_lossy(&output.stdout).trim())
                } else {
                    output.stderr
                },
            },
        },
    )
}

/// What a plugin said, short enough for an error.
fn bounded(text: &str) -> String {
    const MOST: usize = 2000;
    text.chars().take(MOST).collect()
}

/// The versions that a plugin speaks; None where it does not say.
pub(crate) fn versions(program: &Path, timeout: Duration) -> Option<Vec<String>> {
    let input = br#"{"cniVersion":"1.0.0"}"#;
    // Plugins of the old kind want all variables to be there.
    let env = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]
        .map(|name| (name, "none".to_owned()));
    let answer = run(program, Command::Version, &env, input, timeout).ok()?;
    let answer: VersionAnswer = serde_json::from_slice(&answer).ok()?;
    Some(answer.supported)
}
