//! The VMM as this crate uses it: the launcher's blocking calls, each on a
//! thread and a connection of its own, so that a slow one (the wait for the end
//! of a log) holds up no other.

use crate::config::Paths;
use crate::error::{SandboxError, chain};
use crate::process_end::ProcessEnd;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use vm_launcher::{Cgroup, ClientError, Launcher, VmmClient, VmmProcess};
use vm_spec::proto::{
    AttachDiskRequest, Bay, BootRequest, BootResponse, Extent, IoLimits, LogStatus, Share,
    StateResponse,
};

/// File name of the VMM's program.
pub(crate) const PROGRAM: &str = "spherule-vmm";

/// A VMM's process, by descriptor.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) process: Arc<VmmProcess>,
    end: ProcessEnd,
}

impl Process {
    fn new(process: VmmProcess) -> std::io::Result<Self> {
        let end = ProcessEnd::new(process.pidfd().try_clone_to_owned()?)?;
        Ok(Self {
            process: Arc::new(process),
            end,
        })
    }

    /// The process of that id and start time, if it still lives.
    pub(crate) fn adopt(dir: &Path, pid: u32, start_time: u64) -> Option<Self> {
        let process = VmmProcess::adopt(dir, pid, start_time).ok()?;
        Self::new(process).ok()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Clock ticks since the host's boot.
    pub(crate) fn start_time(&self) -> u64 {
        self.process.start_time()
    }

    /// Waits for its end.
    pub(crate) async fn exited(&self) {
        self.end.wait().await;
        // Leaves no zombie.
        self.process.wait_exit_timeout(Duration::ZERO);
    }

    /// Kills it and what it started; waits for its end, at most `limit`.
    pub(crate) async fn kill_and_wait(&self, limit: Duration) {
        self.process.kill();
        if tokio::time::timeout(limit, self.exited()).await.is_err() {
            tracing::error!(pid = self.pid(), "a VMM does not end after SIGKILL");
        }
    }
}

/// The control wire of one VMM.
#[derive(Debug)]
pub(crate) struct Vmm {
    id: String,
    dir: PathBuf,
}

impl Vmm {
    pub(crate) fn new(id: &str, paths: &Paths) -> Self {
        Self {
            id: id.to_owned(),
            dir: paths.run.clone(),
        }
    }

    /// Starts a VMM; returns when it takes connections.
    pub(crate) async fn start(
        launcher: &Launcher,
        id: &str,
        paths: &Paths,
        group: Option<Cgroup>,
    ) -> Result<(Self, Process), SandboxError> {
        let vmm = Self::new(id, paths);
        let (launcher, dir, log) = (launcher.clone(), paths.run.clone(), paths.vmm_log());
        let process = vmm
            .blocking("be started", move || {
                let log = open_append(&log).map_err(|error| chain(&error))?;
                launcher
                    .spawn(&dir, log, group.as_ref())
                    .map_err(|error| chain(&error))
            })
            .await?;
        let process = Process::new(process).map_err(|e| vmm.failed("be watched", chain(&e)))?;
        Ok((vmm, process))
    }

    /// Waits until a VMM that was just started takes connections.
    pub(crate) async fn ready(&self, process: &Arc<VmmProcess>) -> Result<(), SandboxError> {
        let process = Arc::clone(process);
        self.blocking("be reached", move || {
            process.connect().map(|_| ()).map_err(|error| chain(&error))
        })
        .await
    }

    pub(crate) async fn boot(
        &self,
        request: BootRequest,
        kernel: File,
        initramfs: File,
        log: File,
        taps: Vec<OwnedFd>,
    ) -> Result<BootResponse, SandboxError> {
        self.call("boot", move |vmm| {
            let taps: Vec<_> = taps.iter().map(OwnedFd::as_fd).collect();
            vmm.boot_on_network(&request, &kernel, &initramfs, &log, &taps)
        })
        .await
    }

    pub(crate) async fn state(&self) -> Result<StateResponse, SandboxError> {
        self.call("say its state", VmmClient::state).await
    }

    pub(crate) async fn shutdown(&self) -> Result<(), SandboxError> {
        self.call("shut down", VmmClient::shutdown).await
    }

    pub(crate) async fn attach_disk(
        &self,
        name: &str,
        bay: Bay,
        file: File,
    ) -> Result<Extent, SandboxError> {
        let name = name.to_owned();
        self.call("attach a disk", move |vmm| {
            vmm.attach_disk(&name, bay, file.as_fd())
        })
        .await
    }

    pub(crate) async fn attach_volume(
        &self,
        request: AttachDiskRequest,
        file: File,
    ) -> Result<Extent, SandboxError> {
        self.call("attach a volume", move |vmm| {
            vmm.attach_volume(request, file.as_fd())
        })
        .await
    }

    pub(crate) async fn resize_disk(&self, name: &str) -> Result<Extent, SandboxError> {
        let name = name.to_owned();
        self.call("resize a volume", move |vmm| vmm.resize_disk(&name))
            .await
    }

    pub(crate) async fn limit_disk(
        &self,
        name: &str,
        limits: IoLimits,
    ) -> Result<(), SandboxError> {
        let name = name.to_owned();
        self.call("limit a volume", move |vmm| vmm.limit_disk(&name, limits))
            .await
    }

    pub(crate) async fn detach_disk(&self, name: &str) -> Result<(), SandboxError> {
        let name = name.to_owned();
        self.call("detach a disk", move |vmm| vmm.detach_disk(&name))
            .await
    }

    pub(crate) async fn attach_share(
        &self,
        share: Share,
        root: OwnedFd,
    ) -> Result<(), SandboxError> {
        self.call("share a directory", move |vmm| {
            vmm.attach_share(share, root.as_fd())
        })
        .await
    }

    pub(crate) async fn detach_share(&self, name: &str) -> Result<(), SandboxError> {
        let name = name.to_owned();
        self.call("take a share back", move |vmm| vmm.detach_share(&name))
            .await
    }

    pub(crate) async fn attach_log(
        &self,
        container: &str,
        terminal: bool,
        log: File,
    ) -> Result<(), SandboxError> {
        let container = container.to_owned();
        self.call("attach a log", move |vmm| {
            vmm.attach_log(&container, terminal, log.as_fd())
        })
        .await
    }

    /// A stream of `LogOutput` frames.
    pub(crate) async fn follow_output(
        &self,
        container: &str,
        stdout: bool,
        stderr: bool,
    ) -> Result<UnixStream, SandboxError> {
        let container = container.to_owned();
        let what = "follow a container's output";
        let failed = |error| self.failed(what, chain(&error));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        self.call(what, move |vmm| {
            vmm.follow_output(&container, stdout, stderr, theirs.as_fd())
        })
        .await?;
        Ok(ours)
    }

    pub(crate) async fn drain_log(
        &self,
        container: &str,
        limit: Duration,
    ) -> Result<LogStatus, SandboxError> {
        let container = container.to_owned();
        self.call("drain a log", move |vmm| vmm.drain_log(&container, limit))
            .await
    }

    pub(crate) async fn detach_log(&self, container: &str) -> Result<(), SandboxError> {
        let container = container.to_owned();
        self.call("detach a log", move |vmm| vmm.detach_log(&container))
            .await
    }

    /// One call on a connection of its own.
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&mut VmmClient) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        let dir = self.dir.clone();
        self.blocking(what, move || {
            VmmClient::connect(&dir)
                .and_then(|mut vmm| call(&mut vmm))
                .map_err(|error| chain(&error))
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, SandboxError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(|message| self.failed(what, message)),
            Err(_) => Err(SandboxError::TaskDied(self.id.clone())),
        }
    }

    fn failed(&self, what: &'static str, message: String) -> SandboxError {
        SandboxError::Vmm {
            id: self.id.clone(),
            what,
            message,
        }
    }
}

/// A file to read.
pub(crate) fn open_read(what: &'static str, path: &Path) -> Result<File, SandboxError> {
    File::open(path).map_err(|e| SandboxError::file(what, path, e))
}

/// A file to append to, made if it is missing.
pub(crate) fn open_append(path: &Path) -> Result<File, SandboxError> {
    File::options()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o640)
        .open(path)
        .map_err(|e| SandboxError::file("cannot open", path, e))
}

/// A container's log file, made if it or its directory is missing.
pub(crate) async fn open_log(id: &str, path: PathBuf) -> Result<File, SandboxError> {
    // The caller's directory may lie on a disk that hangs.
    let open = move || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| SandboxError::file("cannot make", dir, e))?;
        }
        open_append(&path)
    };
    crate::blocking(id, open).await?
}
