//! The qemu engine: QEMU's microvm machine with TCG, for hosts whose KVM is
//! absent or has no hardware virtualization. Our device back ends serve it over
//! vhost-user, so a pod notices no difference but speed.
//!
//! Threads: two a device (`vhost_user`; one more a NIC, `relay`), one each that reads QEMU's control
//! connection (`qmp`), its messages (`child`) and the guest's console, and the
//! `keeper`, which starts QEMU, waits for its end and says how it ended. QEMU
//! lives no longer than this process.

mod child;
mod command;
mod keeper;
mod probe;
mod qmp;
mod relay;
mod ring;
mod tsc;
mod vhost_user;

pub(crate) use probe::probe;

use super::{Machine, RunningVm};
use command::{Descriptors, NetConfig, Size};
use keeper::{End, Keeper};
use qmp::{Qmp, QmpError};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use vhost_user::{Server, VhostUserError};

/// Why a guest did not start below QEMU.
#[derive(Debug, thiserror::Error)]
enum QemuError {
    #[error("qemu-system-x86_64 is not installed; {}", command::INSTALL)]
    Missing,
    #[error("the qemu engine has no counterpart of device {0:?}")]
    Device(&'static str),
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    #[error("{} cannot be started", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("QEMU {} before the guest ran: {}", .0.status, .0.stderr)]
    Ended(End),
    #[error("QEMU's control connection failed")]
    Control(#[from] QmpError),
    #[error("a thread, socket or descriptor for QEMU could not be made")]
    Host(#[from] io::Error),
}

/// Starts a guest below QEMU; when this returns, its vCPUs run.
///
/// # Errors
/// If QEMU is missing or refuses the machine; its own words are in the error.
pub(crate) fn boot(machine: Machine) -> anyhow::Result<Box<dyn RunningVm>> {
    Ok(Box::new(start(machine)?))
}

/// A guest below QEMU. Dropped in this order: QEMU ends before its devices.
struct QemuVm {
    qmp: Qmp,
    keeper: Keeper,
    servers: Vec<Server>,
}

fn start(machine: Machine) -> Result<QemuVm, QemuError> {
    let program = command::find().ok_or(QemuError::Missing)?;
    let (qmp, qmp_theirs) = UnixStream::pair()?;
    let (console, console_theirs) = UnixStream::pair()?;
    let kernel = OwnedFd::from(machine.kernel);
    let initramfs = OwnedFd::from(machine.initramfs);
    let mut descriptors = Descriptors {
        kernel: kernel.as_raw_fd(),
        initramfs: initramfs.as_raw_fd(),
        qmp: qmp_theirs.as_raw_fd(),
        console: console_theirs.as_raw_fd(),
        devices: Vec::new(),
    };
    let mut inherited = vec![kernel, initramfs, qmp_theirs.into(), console_theirs.into()];
    let mut servers = Vec::new();
    for device in machine.devices {
        let name = device.name();
        let mut config = NetConfig::default();
        device.read_config(0, &mut config);
        let frontend =
            command::frontend(device.device_type(), &config).ok_or(QemuError::Device(name))?;
        let (server, fd) = Server::start(device, frontend.queues, frontend.netdev, &machine.dir)?;
        servers.push(server);
        descriptors.devices.push((frontend, fd.as_raw_fd()));
        inherited.push(fd);
    }
    let size = Size {
        vcpus: machine.vcpus,
        memory_mib: machine.memory_mib,
        tsc_khz: tsc::khz(),
        extra_cmdline: &machine.extra_cmdline,
    };
    let command = command::build(&program, &size, &descriptors);
    let console = copy_console(console, machine.kernel_log)?;
    let keeper = Keeper::start(command, inherited, console)
        .map_err(|source| QemuError::Spawn { program, source })?;
    match Qmp::connect(qmp) {
        Ok(qmp) => {
            keeper.confirm(machine.on_exit);
            Ok(QemuVm {
                qmp,
                keeper,
                servers,
            })
        }
        Err(error) => match keeper.give_up() {
            Some(end) => Err(QemuError::Ended(end)),
            None => Err(error.into()),
        },
    }
}

impl RunningVm for QemuVm {
    fn pause(&mut self) -> anyhow::Result<()> {
        for server in &self.servers {
            server.expect_pause();
        }
        Ok(self.qmp.execute("stop")?)
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        Ok(self.qmp.execute("cont")?)
    }

    fn kill(&mut self) {
        self.keeper.kill();
    }

    fn child_pid(&self) -> Option<u32> {
        Some(self.keeper.pid())
    }
}

/// Copies the guest's console to the kernel log, in a thread, until QEMU ends.
fn copy_console(
    mut console: UnixStream,
    log: Arc<Mutex<dyn Write + Send>>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("console".into())
        .spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let got = match console.read(&mut piece) {
                    Ok(0) => break,
                    Ok(got) => got,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                // The log handles its own faults; the guest must not stop for them.
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = log.write_all(&piece[..got]);
            }
        })
}
