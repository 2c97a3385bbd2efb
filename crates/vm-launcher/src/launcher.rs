//! Starts spherule-vmm.
#![expect(unsafe_code)]
// UNSAFETY: what is done between fork and exec (pre_exec) is unsafe by nature:
// only async-signal-safe calls are allowed there. Nothing else here is unsafe.

use crate::cgroup::Cgroup;
use crate::error::LaunchError;
use crate::process::VmmProcess;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vm_spec::Probe;

/// Environment that the process gets: where to look for QEMU, and what to log.
const KEPT_ENVIRONMENT: [&str; 3] = ["PATH", "SPHERULE_LOG", "RUST_BACKTRACE"];

/// Starts VMM processes.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
}

impl Launcher {
    /// For the program at this path.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
        }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Asks which engines this host has. Blocks for some 100 ms.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn probe(&self) -> Result<Probe, LaunchError> {
        let output = self
            .command()
            .arg("probe")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| self.spawn_error(source))?;
        let fail = |detail: String| LaunchError::Probe {
            program: self.program.clone(),
            detail,
        };
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(fail(format!("{}; {}", output.status, words.trim())));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| fail(e.to_string()))
    }

    /// Starts a process for the VM of `dir`, which exists. Its own messages go
    /// to `log`. It is in a session of its own and lives on when this process
    /// ends; it inherits no descriptor. Where `cgroup` refuses it, it runs all
    /// the same, with a warning.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn spawn(
        &self,
        dir: &Path,
        log: File,
        cgroup: Option<&Cgroup>,
    ) -> Result<VmmProcess, LaunchError> {
        let tail = log.try_clone().map_err(|e| self.spawn_error(e))?;
        let mut command = self.command();
        command
            .args(["--dir", "."])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| self.spawn_error(e))?)
            .stderr(log);
        // SAFETY: the closure runs in the forked child before exec. It makes
        // system calls only; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(detach);
        }
        let child = command.spawn().map_err(|e| self.spawn_error(e))?;
        // Not waited for by its handle, which neither kills nor reaps when it is
        // dropped: the process is one's own child only until a restart.
        let process = VmmProcess::of_child(child.id(), dir, tail)?;
        if let Some(cgroup) = cgroup
            && let Err(error) = cgroup.add(child.id())
        {
            tracing::warn!(
                pid = child.id(),
                error = &error as &dyn std::error::Error,
                "the VM runs without a cgroup of its own"
            );
        }
        Ok(process)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear();
        for name in KEPT_ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    fn spawn_error(&self, source: io::Error) -> LaunchError {
        LaunchError::Spawn {
            program: self.program.clone(),
            source,
        }
    }
}

/// Between fork and exec: a session of its own, no inherited descriptors.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    // Descriptors of this process are closed on exec already, by its own hand;
    // this is for those that a library opened otherwise. Linux before 5.11 does
    // not know the call, which is no reason to fail.
    // SAFETY: sets a flag on descriptors of this process, the child; what std
    // passes on has the numbers 0 to 2 by then or is close-on-exec.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
    Ok(())
}
