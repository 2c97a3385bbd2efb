//! What a command did, and the words to say it when a test fails.

use anyhow::{Context, bail, ensure};
use std::process::Output;

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// How it was called.
    pub command: String,
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
}

impl Ran {
    pub(crate) fn new(command: String, output: Output) -> Self {
        Self {
            command,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It succeeded; its standard output.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(self.code == Some(0), "{self}");
        Ok(self.stdout)
    }

    /// It ended with this code; its standard output.
    pub fn code(self, code: i32) -> anyhow::Result<String> {
        ensure!(self.code == Some(code), "expected exit code {code}: {self}");
        Ok(self.stdout)
    }

    /// It failed, and said all of these on standard error.
    pub fn refused(self, words: &[&str]) -> anyhow::Result<()> {
        if self.code == Some(0) {
            bail!("expected a refusal: {self}");
        }
        for word in words {
            ensure!(
                self.stderr.contains(word),
                "expected {word:?} on standard error: {self}"
            );
        }
        Ok(())
    }

    /// It succeeded and printed JSON.
    pub fn json(self) -> anyhow::Result<serde_json::Value> {
        let stdout = self.ok()?;
        serde_json::from_str(&stdout).with_context(|| format!("not JSON: {stdout}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ended with {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}
