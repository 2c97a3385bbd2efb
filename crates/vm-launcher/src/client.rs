//! The control wire as typed calls.

use crate::error::{CallError, ClientError};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vm_spec::proto::{
    AttachDiskRequest, AttachLogRequest, AttachShareRequest, Bay, BootRequest, BootResponse,
    DetachDiskRequest, DetachLogRequest, DetachShareRequest, DrainLogRequest, Extent,
    FollowOutputRequest, IoLimits, LimitDiskRequest, LogStatus, PauseRequest, Request,
    ResizeDiskRequest, Response, ResumeRequest, Share, ShutdownRequest, StateRequest,
    StateResponse, VmExit, request::Call, response::Result as Outcome,
};
use wire::proto::Hello;
use wire::{FdStream, WireError};

/// How long [`VmmClient::connect`] waits for the socket of a starting process.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between attempts to connect.
const CONNECT_RETRY: Duration = Duration::from_millis(2);
/// How long a call may take. The slowest is AttachLog, which waits for the guest
/// agent, and Boot of a large VM on a busy host.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to one VMM process. Calls go one after the other; for calls at
/// the same time, open more connections.
#[derive(Debug)]
pub struct VmmClient {
    stream: FdStream,
    dir: PathBuf,
}

/// How the VM of `dir` ended, if that is recorded there.
pub fn exit_record(dir: &Path) -> Option<VmExit> {
    let text = std::fs::read_to_string(dir.join(vm_spec::files::EXIT)).ok()?;
    vm_spec::exit_from_json(&text).ok()
}

impl VmmClient {
    /// Connects to the VMM of `dir`; waits some seconds for one that is just
    /// starting. Where the process is at hand, [`crate::VmmProcess::connect`]
    /// notices its death at once. Blocks.
    ///
    /// # Errors
    /// [`ClientError::Ended`] if the VM has ended, [`ClientError::Unreachable`]
    /// if nobody listens.
    pub fn connect(dir: &Path) -> Result<Self, ClientError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let error = match Self::try_connect(dir) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if !matches!(error, ClientError::Unreachable { .. }) {
                return Err(error);
            }
            if let Some(exit) = exit_record(dir) {
                return Err(ClientError::Ended(exit));
            }
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(CONNECT_RETRY);
        }
    }

    /// One attempt.
    pub(crate) fn try_connect(dir: &Path) -> Result<Self, ClientError> {
        let stream = connect_in(dir).map_err(|source| ClientError::Unreachable {
            dir: dir.to_owned(),
            source,
        })?;
        let mut client = Self {
            stream: FdStream::new(stream),
            dir: dir.to_owned(),
        };
        client.greet().map_err(|error| client.explain(error))?;
        Ok(client)
    }

    fn greet(&mut self) -> Result<(), WireError> {
        self.limit(CALL_TIMEOUT)?;
        self.stream.send(&wire::hello("vm-launcher"), &[])?;
        let (hello, _) = self.stream.recv::<Hello>()?.ok_or(WireError::Truncated)?;
        wire::check_hello(&hello)
    }

    /// Boots the VM. `kernel_log` is open for reading and appending.
    ///
    /// # Errors
    /// If the process refuses; then it is idle again.
    pub fn boot(
        &mut self,
        request: &BootRequest,
        kernel: impl AsFd,
        initramfs: impl AsFd,
        kernel_log: impl AsFd,
    ) -> Result<BootResponse, ClientError> {
        self.boot_on_network(request, kernel, initramfs, kernel_log, &[])
    }

    /// Boots a VM with NICs; `taps` are those of all of them, in the order of
    /// the request, as many for each as it has queue pairs.
    ///
    /// # Errors
    /// If the process refuses; then it is idle again.
    pub fn boot_on_network(
        &mut self,
        request: &BootRequest,
        kernel: impl AsFd,
        initramfs: impl AsFd,
        kernel_log: impl AsFd,
        taps: &[BorrowedFd<'_>],
    ) -> Result<BootResponse, ClientError> {
        let mut fds = vec![kernel.as_fd(), initramfs.as_fd(), kernel_log.as_fd()];
        fds.extend_from_slice(taps);
        match self.call(Call::Boot(request.clone()), &fds, CALL_TIMEOUT)? {
            Outcome::Boot(response) => Ok(response),
            _ => Err(ClientError::Unexpected("Boot")),
        }
    }

    /// Everything about the VM.
    ///
    /// # Errors
    /// If the process cannot be asked.
    pub fn state(&mut self) -> Result<StateResponse, ClientError> {
        match self.call(Call::State(StateRequest {}), &[], CALL_TIMEOUT)? {
            Outcome::State(response) => Ok(response),
            _ => Err(ClientError::Unexpected("State")),
        }
    }

    /// Stops all vCPUs. Of a paused VM: success.
    ///
    /// # Errors
    /// If the VM does not run.
    pub fn pause(&mut self) -> Result<(), ClientError> {
        match self.call(Call::Pause(PauseRequest {}), &[], CALL_TIMEOUT)? {
            Outcome::Pause(_) => Ok(()),
            _ => Err(ClientError::Unexpected("Pause")),
        }
    }

    /// Lets the vCPUs go on. Of a running VM: success.
    ///
    /// # Errors
    /// If the VM is not booted.
    pub fn resume(&mut self) -> Result<(), ClientError> {
        match self.call(Call::Resume(ResumeRequest {}), &[], CALL_TIMEOUT)? {
            Outcome::Resume(_) => Ok(()),
            _ => Err(ClientError::Unexpected("Resume")),
        }
    }

    /// Ends the VM at once; the process ends soon after.
    ///
    /// # Errors
    /// If the process cannot be asked; [`ClientError::Ended`] if it ended before.
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        match self.call(Call::Shutdown(ShutdownRequest {}), &[], CALL_TIMEOUT)? {
            Outcome::Shutdown(_) => Ok(()),
            _ => Err(ClientError::Unexpected("Shutdown")),
        }
    }

    /// Puts a file or block device into a bay. For [`Bay::Writable`] it is open
    /// for reading and writing.
    ///
    /// # Errors
    /// If the name is taken, or the file is of no use as a disk.
    pub fn attach_disk(
        &mut self,
        name: &str,
        bay: Bay,
        file: impl AsFd,
    ) -> Result<Extent, ClientError> {
        let request = AttachDiskRequest {
            name: name.to_owned(),
            bay: bay.into(),
            ..AttachDiskRequest::default()
        };
        self.attach(request, file)
    }

    /// Puts a file or block device into a bay of volumes. Unless it is to be
    /// read-only it is open for reading and writing.
    ///
    /// # Errors
    /// As [`Self::attach_disk`]; or if the VM has no such bay.
    pub fn attach_volume(
        &mut self,
        request: AttachDiskRequest,
        file: impl AsFd,
    ) -> Result<Extent, ClientError> {
        let bay = Bay::Volumes.into();
        self.attach(AttachDiskRequest { bay, ..request }, file)
    }

    fn attach(
        &mut self,
        request: AttachDiskRequest,
        file: impl AsFd,
    ) -> Result<Extent, ClientError> {
        match self.call(Call::AttachDisk(request), &[file.as_fd()], CALL_TIMEOUT)? {
            Outcome::AttachDisk(response) => {
                response.extent.ok_or(ClientError::Unexpected("AttachDisk"))
            }
            _ => Err(ClientError::Unexpected("AttachDisk")),
        }
    }

    /// Takes a file out of its bay.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn detach_disk(&mut self, name: &str) -> Result<(), ClientError> {
        let request = DetachDiskRequest {
            name: name.to_owned(),
        };
        match self.call(Call::DetachDisk(request), &[], CALL_TIMEOUT)? {
            Outcome::DetachDisk(_) => Ok(()),
            _ => Err(ClientError::Unexpected("DetachDisk")),
        }
    }

    /// Has a volume end where its file or device, which has grown, ends now.
    ///
    /// # Errors
    /// If there is none of that name, or it has shrunk.
    pub fn resize_disk(&mut self, name: &str) -> Result<Extent, ClientError> {
        let request = ResizeDiskRequest {
            name: name.to_owned(),
        };
        match self.call(Call::ResizeDisk(request), &[], CALL_TIMEOUT)? {
            Outcome::ResizeDisk(response) => {
                response.extent.ok_or(ClientError::Unexpected("ResizeDisk"))
            }
            _ => Err(ClientError::Unexpected("ResizeDisk")),
        }
    }

    /// Changes what a volume may do.
    ///
    /// # Errors
    /// If there is none of that name, or a rate is 0.
    pub fn limit_disk(&mut self, name: &str, limits: IoLimits) -> Result<(), ClientError> {
        let request = LimitDiskRequest {
            name: name.to_owned(),
            limits: Some(limits),
        };
        match self.call(Call::LimitDisk(request), &[], CALL_TIMEOUT)? {
            Outcome::LimitDisk(_) => Ok(()),
            _ => Err(ClientError::Unexpected("LimitDisk")),
        }
    }

    /// Shares a directory or regular file (a descriptor that may be O_PATH) with
    /// the guest, in the root of its virtio-fs device. Of the same file under
    /// the same name: changes the access to it.
    ///
    /// # Errors
    /// If the VM has no such device, the name is taken, or the descriptor is of
    /// something else.
    pub fn attach_share(&mut self, share: Share, root: impl AsFd) -> Result<(), ClientError> {
        let request = AttachShareRequest { share: Some(share) };
        match self.call(Call::AttachShare(request), &[root.as_fd()], CALL_TIMEOUT)? {
            Outcome::AttachShare(_) => Ok(()),
            _ => Err(ClientError::Unexpected("AttachShare")),
        }
    }

    /// Takes a share away from the guest, whatever it still has open there.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn detach_share(&mut self, name: &str) -> Result<(), ClientError> {
        let request = DetachShareRequest {
            name: name.to_owned(),
        };
        match self.call(Call::DetachShare(request), &[], CALL_TIMEOUT)? {
            Outcome::DetachShare(_) => Ok(()),
            _ => Err(ClientError::Unexpected("DetachShare")),
        }
    }

    /// Starts to copy a container's output into `file`, which is open for
    /// appending. Of a container whose log is attached: goes on in `file`.
    ///
    /// # Errors
    /// If the guest agent does not open the streams.
    pub fn attach_log(
        &mut self,
        container_id: &str,
        terminal: bool,
        file: impl AsFd,
    ) -> Result<(), ClientError> {
        let request = AttachLogRequest {
            container_id: container_id.to_owned(),
            terminal,
        };
        match self.call(Call::AttachLog(request), &[file.as_fd()], CALL_TIMEOUT)? {
            Outcome::AttachLog(_) => Ok(()),
            _ => Err(ClientError::Unexpected("AttachLog")),
        }
    }

    /// Sends a container's output from now on to `socket`, too, as `LogOutput`
    /// frames; closed when the output has ended.
    ///
    /// # Errors
    /// If no log of the container is attached, or many follow it already.
    pub fn follow_output(
        &mut self,
        container_id: &str,
        stdout: bool,
        stderr: bool,
        socket: impl AsFd,
    ) -> Result<(), ClientError> {
        let request = FollowOutputRequest {
            container_id: container_id.to_owned(),
            stdout,
            stderr,
        };
        match self.call(Call::FollowOutput(request), &[socket.as_fd()], CALL_TIMEOUT)? {
            Outcome::FollowOutput(_) => Ok(()),
            _ => Err(ClientError::Unexpected("FollowOutput")),
        }
    }

    /// Waits until all output of a container is in its file, or `timeout` (49
    /// days at most) has passed: the status says which.
    ///
    /// # Errors
    /// If no log of the container is attached.
    pub fn drain_log(
        &mut self,
        container_id: &str,
        timeout: Duration,
    ) -> Result<LogStatus, ClientError> {
        let request = DrainLogRequest {
            container_id: container_id.to_owned(),
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        };
        let limit = timeout.saturating_add(CALL_TIMEOUT);
        match self.call(Call::DrainLog(request), &[], limit)? {
            Outcome::DrainLog(response) => {
                response.status.ok_or(ClientError::Unexpected("DrainLog"))
            }
            _ => Err(ClientError::Unexpected("DrainLog")),
        }
    }

    /// Forgets the log of a container; ends the copying if it goes on.
    ///
    /// # Errors
    /// If no log of the container is attached.
    pub fn detach_log(&mut self, container_id: &str) -> Result<(), ClientError> {
        let request = DetachLogRequest {
            container_id: container_id.to_owned(),
        };
        match self.call(Call::DetachLog(request), &[], CALL_TIMEOUT)? {
            Outcome::DetachLog(_) => Ok(()),
            _ => Err(ClientError::Unexpected("DetachLog")),
        }
    }

    /// Sends a request and waits for its response.
    fn call(
        &mut self,
        call: Call,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Outcome, ClientError> {
        let request = Request { call: Some(call) };
        let response = self
            .exchange(&request, fds, timeout)
            .map_err(|error| self.explain(error))?;
        match response.result {
            Some(Outcome::Error(error)) => Err(CallError::from(error).into()),
            Some(outcome) => Ok(outcome),
            None => Err(ClientError::Unexpected("the call")),
        }
    }

    fn exchange(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Response, WireError> {
        self.limit(timeout)?;
        self.stream.send(request, fds)?;
        let (response, _) = self
            .stream
            .recv::<Response>()?
            .ok_or(WireError::Truncated)?;
        Ok(response)
    }

    fn limit(&self, timeout: Duration) -> io::Result<()> {
        let stream = self.stream.get_ref();
        // Some ten years at most: the kernel's type for it is bounded.
        let timeout = timeout.min(Duration::from_secs(1 << 28));
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))
    }

    /// A connection breaks when the process ends; then why it ended says more.
    fn explain(&self, error: WireError) -> ClientError {
        match error {
            WireError::Io(_) | WireError::Truncated => {
                exit_record(&self.dir).map_or_else(|| error.into(), ClientError::Ended)
            }
            error => error.into(),
        }
    }
}

/// Connects to the control socket in `dir`, however long its path: a socket's
/// address has room for 108 bytes only.
fn connect_in(dir: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    let path = format!(
        "/proc/self/fd/{}/{}",
        dir.as_raw_fd(),
        vm_spec::files::CONTROL_SOCKET
    );
    UnixStream::connect(path)
}
