//! One control connection: requests in, responses out, one after the other.

use crate::builder::{BootFiles, BuildError};
use crate::lifecycle::{CallError, Lifecycle};
use crate::logs::LogError;
use crate::server::Activity;
use guest_api::proto::open_stream::Stream;
use rustix::fs::OFlags;
use rustix::net::SocketType;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use virtio_devices::{BayError, ShareError};
use vm_spec::proto::{
    AttachDiskResponse, AttachLogResponse, AttachShareResponse, DetachDiskResponse,
    DetachLogResponse, DetachShareResponse, DrainLogResponse, FollowOutputRequest,
    FollowOutputResponse, LimitDiskResponse, PauseResponse, Request, ResizeDiskResponse, Response,
    ResumeResponse, ShutdownResponse, request::Call, response::Result as Outcome,
};
use wire::proto::{Error, Hello, error::Code};
use wire::{FdStream, WireError};

/// How long a new connection may take to say Hello, and to take a response.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a connection until the peer closes it.
pub(crate) fn serve(
    stream: UnixStream,
    lifecycle: &Lifecycle,
    activity: &Activity,
) -> Result<(), WireError> {
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    stream.set_write_timeout(Some(PEER_TIMEOUT))?;
    let mut stream = FdStream::new(stream);
    stream.send(&wire::hello("spherule-vmm"), &[])?;
    let (hello, _) = stream.recv::<Hello>()?.ok_or(WireError::Truncated)?;
    wire::check_hello(&hello)?;
    stream.get_ref().set_read_timeout(None)?;
    loop {
        let (request, fds) = match stream.recv::<Request>() {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            Err(error @ (WireError::Malformed(_) | WireError::TooLarge(_))) => {
                // The peer may be curious why the connection ends.
                let error_text = error.to_string();
                let _ = stream.send(&failed(invalid("", error_text)), &[]);
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let _busy = activity.begin_request();
        let outcome = handle(request, fds, lifecycle, Instant::now());
        let response = outcome.map_or_else(failed, |outcome| Response {
            result: Some(outcome),
        });
        stream.send(&response, &[])?;
    }
}

/// One call.
fn handle(
    request: Request,
    fds: Vec<OwnedFd>,
    lifecycle: &Lifecycle,
    read_at: Instant,
) -> Result<Outcome, Error> {
    let Some(call) = request.call else {
        return Err(Error {
            code: Code::Unimplemented.into(),
            message: "this version does not know the call".into(),
            remedy: "install matching versions of spherule and spherule-vmm".into(),
            ..Error::default()
        });
    };
    Ok(match call {
        Call::Boot(request) => {
            let mut fds = fds;
            // What comes after them is counted against the NICs.
            let taps = fds.split_off(fds.len().min(3));
            let [kernel, initramfs, log] = files(fds, "kernel, initramfs and kernel log")?;
            let files = BootFiles {
                kernel,
                initramfs,
                kernel_log: appendable(log, "kernel log")?,
                taps,
            };
            Outcome::Boot(
                lifecycle
                    .boot(request, files, read_at)
                    .map_err(call_error)?,
            )
        }
        Call::State(_) => {
            no_files(fds)?;
            Outcome::State(lifecycle.state())
        }
        Call::Pause(_) => {
            no_files(fds)?;
            lifecycle.pause().map_err(call_error)?;
            Outcome::Pause(PauseResponse {})
        }
        Call::Resume(_) => {
            no_files(fds)?;
            lifecycle.resume().map_err(call_error)?;
            Outcome::Resume(ResumeResponse {})
        }
        Call::Shutdown(_) => {
            no_files(fds)?;
            lifecycle.shutdown();
            Outcome::Shutdown(ShutdownResponse {})
        }
        Call::AttachDisk(request) => {
            let [file] = files(fds, "the disk")?;
            let extent = lifecycle.attach_disk(&request, file).map_err(call_error)?;
            Outcome::AttachDisk(AttachDiskResponse {
                extent: Some(extent),
            })
        }
        Call::DetachDisk(request) => {
            no_files(fds)?;
            lifecycle.detach_disk(&request.name).map_err(call_error)?;
            Outcome::DetachDisk(DetachDiskResponse {})
        }
        Call::ResizeDisk(request) => {
            no_files(fds)?;
            let extent = lifecycle.resize_disk(&request.name).map_err(call_error)?;
            Outcome::ResizeDisk(ResizeDiskResponse {
                extent: Some(extent),
            })
        }
        Call::LimitDisk(request) => {
            no_files(fds)?;
            lifecycle
                .limit_disk(&request.name, request.limits.as_ref())
                .map_err(call_error)?;
            Outcome::LimitDisk(LimitDiskResponse {})
        }
        Call::AttachShare(request) => {
            let [root] = files(fds, "the directory or file to share")?;
            let share = request.share.unwrap_or_default();
            lifecycle
                .attach_share(&share, root.into())
                .map_err(call_error)?;
            Outcome::AttachShare(AttachShareResponse {})
        }
        Call::DetachShare(request) => {
            no_files(fds)?;
            lifecycle.detach_share(&request.name).map_err(call_error)?;
            Outcome::DetachShare(DetachShareResponse {})
        }
        log_call => return handle_log(log_call, fds, lifecycle, read_at),
    })
}

/// One call about a container's log.
fn handle_log(
    call: Call,
    fds: Vec<OwnedFd>,
    lifecycle: &Lifecycle,
    read_at: Instant,
) -> Result<Outcome, Error> {
    let logs = &lifecycle.logs;
    Ok(match call {
        Call::AttachLog(request) => {
            let [file] = files(fds, "the log file")?;
            let file = appendable(file, "log file")?;
            logs.attach(&request.container_id, request.terminal, file)
                .map_err(|error| log_error(&error))?;
            Outcome::AttachLog(AttachLogResponse {})
        }
        Call::DrainLog(request) => {
            no_files(fds)?;
            let deadline = read_at + Duration::from_millis(request.timeout_ms.into());
            let status = logs
                .drain(&request.container_id, deadline)
                .map_err(|error| log_error(&error))?;
            Outcome::DrainLog(DrainLogResponse {
                status: Some(status),
            })
        }
        Call::FollowOutput(request) => {
            follow_output(&request, fds, lifecycle)?;
            Outcome::FollowOutput(FollowOutputResponse {})
        }
        Call::DetachLog(request) => {
            no_files(fds)?;
            logs.detach(&request.container_id)
                .map_err(|error| log_error(&error))?;
            Outcome::DetachLog(DetachLogResponse {})
        }
        _ => {
            return Err(Error {
                code: Code::Internal.into(),
                message: "the call is handled nowhere".into(),
                ..Error::default()
            });
        }
    })
}

fn follow_output(
    request: &FollowOutputRequest,
    fds: Vec<OwnedFd>,
    lifecycle: &Lifecycle,
) -> Result<(), Error> {
    let [socket] = files(fds, "the reader's socket")?;
    let kind = rustix::net::sockopt::socket_type(&socket);
    if kind != Ok(SocketType::STREAM) {
        return Err(invalid(
            "descriptors",
            "the reader's is no stream socket".into(),
        ));
    }
    if let Err(error) = rustix::io::ioctl_fionbio(&socket, true) {
        let message = format!("the reader's socket cannot be used: {error}");
        return Err(invalid("descriptors", message));
    }
    let wanted = [
        (request.stdout, Stream::Stdout),
        (request.stderr, Stream::Stderr),
    ];
    let streams = wanted.into_iter().filter(|(wanted, _)| *wanted);
    let streams = streams.map(|(_, stream)| stream).collect();
    let followed = lifecycle
        .logs
        .follow(&request.container_id, streams, socket.into());
    followed.map_err(|error| log_error(&error))
}

/// Exactly as many descriptors as the call needs.
fn files<const N: usize>(fds: Vec<OwnedFd>, what: &str) -> Result<[File; N], Error> {
    let count = fds.len();
    let files: Vec<File> = fds.into_iter().map(File::from).collect();
    files.try_into().map_err(|_| {
        let message = format!("{N} descriptors are needed ({what}) and {count} came");
        invalid("descriptors", message)
    })
}

fn no_files(fds: Vec<OwnedFd>) -> Result<(), Error> {
    let [] = files(fds, "none")?;
    Ok(())
}

/// A file into which several may write without losing each other's bytes.
fn appendable(file: File, what: &'static str) -> Result<File, Error> {
    let refuse = |why: String| Err(invalid("descriptors", format!("the {what} {why}")));
    let flags = match rustix::fs::fcntl_getfl(&file) {
        Ok(flags) => flags,
        Err(error) => return refuse(format!("cannot be used: {error}")),
    };
    if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return refuse("is not open for writing".into());
    }
    if !flags.contains(OFlags::APPEND)
        && let Err(error) = rustix::fs::fcntl_setfl(&file, flags | OFlags::APPEND)
    {
        return refuse(format!("cannot be appended to: {error}"));
    }
    Ok(file)
}

fn failed(error: Error) -> Response {
    Response {
        result: Some(Outcome::Error(error)),
    }
}

fn invalid(field: &str, message: String) -> Error {
    Error {
        code: Code::InvalidArgument.into(),
        message,
        field: field.into(),
        remedy: String::new(),
    }
}

/// An error with its causes, as one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn call_error(error: CallError) -> Error {
    let (code, field, remedy) = match &error {
        CallError::State(_) => (Code::FailedPrecondition, "", ""),
        CallError::Exited(_) => (Code::Unavailable, "", ""),
        CallError::Build(BuildError::Limit(limit)) => (Code::InvalidArgument, limit.field, ""),
        CallError::Build(BuildError::Cmdline) => (Code::InvalidArgument, "extra_cmdline", ""),
        CallError::Build(BuildError::Kernel(_)) => (
            Code::InvalidArgument,
            "kernel",
            "build the guest kernel again: cargo xtask setup",
        ),
        CallError::Build(BuildError::Initramfs(_)) => (
            Code::InvalidArgument,
            "initramfs",
            "build the guest image again: cargo xtask setup",
        ),
        CallError::Build(BuildError::Taps { .. }) => (Code::InvalidArgument, "descriptors", ""),
        CallError::Build(BuildError::Nic { .. }) => (
            Code::InvalidArgument,
            "nics",
            "open the TAP with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
        ),
        CallError::Build(BuildError::Host { .. }) | CallError::Engine(_) => {
            (Code::Internal, "", "")
        }
        CallError::Bay(error) => (bay_code(error), "name", ""),
        CallError::Share(error) => (share_code(error), "share", ""),
        CallError::NoShares => (Code::FailedPrecondition, "share", ""),
        CallError::NoBay | CallError::NotOfVolumes => (Code::InvalidArgument, "bay", ""),
        CallError::NoVolumeBay => (Code::FailedPrecondition, "bay", ""),
        CallError::RateLimit => (Code::InvalidArgument, "limits", ""),
        CallError::DiskName => (Code::InvalidArgument, "name", ""),
    };
    Error {
        code: code.into(),
        message: with_causes(&error),
        field: field.into(),
        remedy: remedy.into(),
    }
}

fn bay_code(error: &BayError) -> Code {
    match error {
        BayError::NameTaken(_) => Code::AlreadyExists,
        BayError::NoSuchExtent(_) => Code::NotFound,
        BayError::Full { .. } | BayError::NoTimer(_) => Code::ResourceExhausted,
        BayError::Shrunk { .. } => Code::FailedPrecondition,
        BayError::Inspect { .. } => Code::Internal,
        _ => Code::InvalidArgument,
    }
}

fn share_code(error: &ShareError) -> Code {
    match error {
        ShareError::NameTaken(_) => Code::AlreadyExists,
        ShareError::NoSuchShare(_) => Code::NotFound,
        ShareError::TooMany => Code::ResourceExhausted,
        ShareError::Inspect { .. } => Code::Internal,
        ShareError::Name(_) | ShareError::Type(_) => Code::InvalidArgument,
    }
}

fn log_error(error: &LogError) -> Error {
    let code = match error {
        LogError::NotAttached(_) => Code::NotFound,
        LogError::TooMany | LogError::TooManyReaders(_) => Code::ResourceExhausted,
        LogError::Stream { .. } => Code::Unavailable,
        LogError::Thread(_) => Code::Internal,
    };
    Error {
        code: code.into(),
        message: with_causes(error),
        field: "container_id".into(),
        remedy: String::new(),
    }
}
